//! The part of Python's pickle that fail2ban's socket speaks: writes a list of strings, reads
//! numbers, strings, lists, tuples, dictionaries and the text of anything else. Nothing is ever
//! built or called that a reply names.
//!
//! The opcodes are those of CPython's `Lib/pickletools.py`, protocols 2 to 5. The reader is bounded:
//! by the length of the reply, by depth, and by the number of values.

use std::borrow::Cow;

/// The deepest nesting that is read; replies have at most five levels.
const MAX_DEPTH: usize = 32;

/// The most values that are read, counting copies made by back references.
const MAX_VALUES: usize = 4_000_000;

/// One value of a reply, whose texts stay where they are: it may have many.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// None.
    None,
    /// True or False.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any other number.
    Float(f64),
    /// A text; bytes are read as Latin-1.
    Text(Cow<'a, str>),
    /// A list, a tuple or a set.
    List(Vec<Self>),
    /// A dictionary, in its order.
    Dict(Vec<(Self, Self)>),
    /// An object: the name of its class and what it was made of, with the state that was set on it last.
    Object(Cow<'a, str>, Vec<Self>),
}

impl Value<'_> {
    /// The text of a string, or of an object that was made of one (an address in `ignoreip`).
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Object(_, made_of) => made_of.iter().find_map(Self::text),
            _ => None,
        }
    }

    /// The values of a list or tuple.
    #[must_use]
    pub fn list(&self) -> Option<&[Self]> {
        match self {
            Self::List(values) => Some(values),
            _ => None,
        }
    }

    /// A whole number; any other is rounded towards 0.
    #[must_use]
    pub fn int(&self) -> Option<i64> {
        match self {
            Self::Int(number) => Some(*number),
            Self::Float(number) => super::column::whole(*number),
            Self::Bool(bool) => Some((*bool).into()),
            _ => None,
        }
    }
}

/// Why a reply cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It ends too early, or a length in it is wrong.
    #[error("the answer is truncated")]
    CutOff,
    /// It has an opcode that no reply needs.
    #[error("unsupported pickle opcode {0:#04x}")]
    Opcode(u8),
    /// An opcode meets values that it cannot work on.
    #[error("invalid sequence of pickle opcodes")]
    Misfit,
    /// It is nested too deep, or has too many values.
    #[error("the answer is too large")]
    TooLarge,
}

/// Writes a list of strings, as fail2ban's server takes its commands.
#[must_use]
pub fn write(words: &[&str]) -> Vec<u8> {
    let mut out = b"\x80\x02]".to_vec();
    out.push(b'(');
    for word in words {
        let length = u32::try_from(word.len()).unwrap_or(u32::MAX);
        out.push(b'X');
        out.extend(length.to_le_bytes());
        out.extend(&word.as_bytes()[..length as usize]);
    }
    out.extend(b"e.");
    out
}

/// Reads one reply.
///
/// # Errors
/// [`Unreadable`].
pub fn read(bytes: &[u8]) -> Result<Value<'_>, Unreadable> {
    Reader { rest: bytes, stack: Vec::new(), marks: Vec::new(), memo: Vec::new(), values: 0 }.run()
}

struct Reader<'a> {
    rest: &'a [u8],
    stack: Vec<Value<'a>>,
    /// Where on the stack a MARK stood.
    marks: Vec<usize>,
    /// What a GET may ask for. A list that is memoized before it is filled is not kept: no reply
    /// holds the same list twice.
    memo: Vec<Option<Value<'a>>>,
    values: usize,
}

impl<'a> Reader<'a> {
    fn run(mut self) -> Result<Value<'a>, Unreadable> {
        loop {
            let opcode = self.byte()?;
            if opcode == b'.' {
                let value = self.pop()?;
                return if self.stack.is_empty() { Ok(value) } else { Err(Unreadable::Misfit) };
            }
            self.step(opcode)?;
        }
    }

    fn step(&mut self, opcode: u8) -> Result<(), Unreadable> {
        match opcode {
            0x80 => drop(self.byte()?),      // PROTO
            0x95 => drop(self.bytes(8)?),    // FRAME
            b'N' => self.push(Value::None)?, // NONE
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            b'K' | b'M' | b'J' | 0x8a | b'G' => {
                let number = self.number(opcode)?;
                self.push(number)?;
            }
            0x8c | b'X' | 0x8d => {
                let length = self.length(match opcode {
                    0x8c => 1,
                    b'X' => 4,
                    _ => 8,
                })?;
                // Python writes what was no UTF-8 in a file as lone surrogates.
                let text = String::from_utf8_lossy(self.bytes(length)?);
                self.push(Value::Text(text))?;
            }
            b'C' | b'B' => {
                let length = self.length(if opcode == b'C' { 1 } else { 4 })?;
                let text: String = self.bytes(length)?.iter().copied().map(char::from).collect();
                self.push(Value::Text(text.into()))?;
            }
            b']' | b')' | 0x8f => self.push(Value::List(Vec::new()))?,
            b'}' => self.push(Value::Dict(Vec::new()))?,
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b't' | 0x91 => {
                let values = self.marked()?;
                self.collect(values)?;
            }
            0x85..=0x87 => {
                let values = self.top(usize::from(opcode - 0x84))?;
                self.collect(values)?;
            }
            b'a' => {
                let values = self.top(1)?;
                self.append(values)?;
            }
            b'e' | 0x90 => {
                let values = self.marked()?;
                self.append(values)?;
            }
            b's' => {
                let values = self.top(2)?;
                self.set_items(values)?;
            }
            b'u' => {
                let values = self.marked()?;
                self.set_items(values)?;
            }
            b'c' | 0x93 | b'R' | 0x81 | 0x92 | b'b' => self.object(opcode)?,
            0x94 | b'q' | b'r' | b'h' | b'j' => self.memo(opcode)?,
            other => return Err(Unreadable::Opcode(other)),
        }
        Ok(())
    }

    fn number(&mut self, opcode: u8) -> Result<Value<'a>, Unreadable> {
        let length = match opcode {
            b'K' => 1,
            b'M' => 2,
            b'J' => 4,
            b'G' => 8,
            _ => self.length(1)?, // LONG1
        };
        let bytes = self.bytes(length)?;
        if opcode == b'G' {
            let bytes = bytes.try_into().map_err(|_| Unreadable::CutOff)?;
            return Ok(Value::Float(f64::from_be_bytes(bytes)));
        }
        if length > 8 {
            // Beyond the range of what is counted here: the end of that range.
            let negative = bytes.last().is_some_and(|byte| *byte > 0x7f);
            return Ok(Value::Int(if negative { i64::MIN } else { i64::MAX }));
        }
        let signed = matches!(opcode, b'J' | 0x8a) && bytes.last().is_some_and(|byte| *byte > 0x7f);
        let mut wide = [if signed { 0xff } else { 0 }; 8];
        wide[..length].copy_from_slice(bytes);
        Ok(Value::Int(i64::from_le_bytes(wide)))
    }

    /// A class is a text until it is called; called, it is an object that keeps what it was called
    /// with, and the state that is set on it later.
    fn object(&mut self, opcode: u8) -> Result<(), Unreadable> {
        match opcode {
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Value::Text(format!("{module}.{name}").into()))
            }
            0x93 => {
                let names = self.top(2)?;
                match names.as_slice() {
                    [Value::Text(module), Value::Text(name)] => {
                        self.push(Value::Text(format!("{module}.{name}").into()))
                    }
                    _ => Err(Unreadable::Misfit),
                }
            }
            b'b' => {
                let state = self.pop()?;
                depth(&state, 1)?;
                match self.stack.last_mut() {
                    Some(Value::Object(_, made_of)) => made_of.push(state),
                    _ => return Err(Unreadable::Misfit),
                }
                Ok(())
            }
            _ => {
                if opcode == 0x92 {
                    self.pop()?; // NEWOBJ_EX: arguments by name
                }
                match (self.pop()?, self.pop()?) {
                    (Value::List(made_of), Value::Text(class)) => {
                        self.push(Value::Object(class, made_of))
                    }
                    _ => Err(Unreadable::Misfit),
                }
            }
        }
    }

    fn memo(&mut self, opcode: u8) -> Result<(), Unreadable> {
        let index = match opcode {
            0x94 => self.memo.len(),
            b'q' | b'h' => self.length(1)?,
            _ => self.length(4)?,
        };
        if matches!(opcode, b'h' | b'j') {
            let value = self.memo.get(index).cloned().flatten().ok_or(Unreadable::Misfit)?;
            return self.push(value);
        }
        if index > self.memo.len() {
            return Err(Unreadable::Misfit);
        }
        let kept = match self.stack.last().ok_or(Unreadable::Misfit)? {
            Value::Dict(_) => None,
            Value::List(values) if values.is_empty() => None,
            value => Some(value.clone()),
        };
        if index == self.memo.len() {
            self.memo.push(kept);
        } else {
            self.memo[index] = kept;
        }
        Ok(())
    }

    fn push(&mut self, value: Value<'a>) -> Result<(), Unreadable> {
        self.values += size(&value, 0)?;
        if self.values > MAX_VALUES {
            return Err(Unreadable::TooLarge);
        }
        self.stack.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Result<Value<'a>, Unreadable> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(Unreadable::Misfit);
        }
        self.stack.pop().ok_or(Unreadable::Misfit)
    }

    fn top(&mut self, count: usize) -> Result<Vec<Value<'a>>, Unreadable> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len().checked_sub(count) {
            Some(from) if from >= floor => Ok(self.stack.split_off(from)),
            _ => Err(Unreadable::Misfit),
        }
    }

    fn marked(&mut self) -> Result<Vec<Value<'a>>, Unreadable> {
        let from = self.marks.pop().ok_or(Unreadable::Misfit)?;
        Ok(self.stack.split_off(from))
    }

    /// Makes a tuple of values that are counted already.
    fn collect(&mut self, values: Vec<Value<'a>>) -> Result<(), Unreadable> {
        let tuple = Value::List(values);
        depth(&tuple, 0)?;
        self.stack.push(tuple);
        Ok(())
    }

    fn append(&mut self, values: Vec<Value<'a>>) -> Result<(), Unreadable> {
        for value in &values {
            depth(value, 1)?;
        }
        match self.stack.last_mut() {
            Some(Value::List(list)) => list.extend(values),
            _ => return Err(Unreadable::Misfit),
        }
        Ok(())
    }

    fn set_items(&mut self, values: Vec<Value<'a>>) -> Result<(), Unreadable> {
        if !values.len().is_multiple_of(2) {
            return Err(Unreadable::Misfit);
        }
        for value in &values {
            depth(value, 1)?;
        }
        let Some(Value::Dict(dict)) = self.stack.last_mut() else {
            return Err(Unreadable::Misfit);
        };
        let mut values = values.into_iter();
        while let (Some(key), Some(value)) = (values.next(), values.next()) {
            dict.push((key, value));
        }
        Ok(())
    }

    fn byte(&mut self) -> Result<u8, Unreadable> {
        let (&first, rest) = self.rest.split_first().ok_or(Unreadable::CutOff)?;
        self.rest = rest;
        Ok(first)
    }

    fn bytes(&mut self, count: usize) -> Result<&'a [u8], Unreadable> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(Unreadable::CutOff)?;
        self.rest = rest;
        Ok(taken)
    }

    fn length(&mut self, bytes: usize) -> Result<usize, Unreadable> {
        let mut wide = [0; 8];
        wide[..bytes].copy_from_slice(self.bytes(bytes)?);
        usize::try_from(u64::from_le_bytes(wide)).map_err(|_| Unreadable::CutOff)
    }

    fn line(&mut self) -> Result<String, Unreadable> {
        let end = self.rest.iter().position(|&byte| byte == b'\n').ok_or(Unreadable::CutOff)?;
        let line = self.bytes(end)?.iter().copied().map(char::from).collect();
        self.byte()?;
        Ok(line)
    }
}

/// How many values are in a value.
fn size(value: &Value<'_>, level: usize) -> Result<usize, Unreadable> {
    if level > MAX_DEPTH {
        return Err(Unreadable::TooLarge);
    }
    let add = |sum: usize, value| Ok(sum + size(value, level + 1)?);
    match value {
        Value::List(values) | Value::Object(_, values) => values.iter().try_fold(1, add),
        Value::Dict(items) => items.iter().flat_map(|(key, value)| [key, value]).try_fold(1, add),
        _ => Ok(1),
    }
}

/// Fails where a value is nested too deep.
fn depth(value: &Value<'_>, level: usize) -> Result<(), Unreadable> {
    size(value, level).map(drop)
}
