//! Reads and writes the part of Python's pickle format that fail2ban's socket uses: writes a list of strings, reads
//! numbers, strings, lists, tuples, dictionaries and the text of anything else. It never creates or calls an object
//! that a reply names.
//!
//! The opcodes are those of CPython's `Lib/pickletools.py`, protocols 2 to 5. The reader is bounded:
//! by the length of the reply, by depth, and by the number of values.

use std::borrow::Cow;

/// The deepest nesting that is read; replies have at most five levels.
const MAX_DEPTH: usize = 32;

/// The most values that are read, counting copies made by back references.
const MAX_VALUES: usize = 4_000_000;

/// One value of a reply. Texts borrow from the reply, which may have many.
#[derive(Clone, Debug, PartialEq)]
pub enum PickleValue<'a> {
    /// Python's `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An `int`, clamped to the range of `i64`.
    Int(i64),
    /// A `float`.
    Float(f64),
    /// A `str`, or `bytes` read as Latin-1.
    Text(Cow<'a, str>),
    /// A list, a tuple or a set.
    List(Vec<Self>),
    /// A dictionary, in its order.
    Dict(Vec<(Self, Self)>),
    /// An object: the name of its class, and its arguments followed by its state.
    Object(Cow<'a, str>, Vec<Self>),
}

impl PickleValue<'_> {
    /// The text of a string, or of an object with a string as argument, such as an address in `ignoreip`.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Object(_, parts) => parts.iter().find_map(Self::text),
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

    /// The value as a whole number, rounded towards 0.
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
    /// The reply ends too early, or a length in it is wrong.
    #[error("the answer is truncated")]
    CutOff,
    /// An opcode that no reply of fail2ban has.
    #[error("unsupported pickle opcode {0:#04x}")]
    Opcode(u8),
    /// An opcode that does not fit the values before it.
    #[error("invalid sequence of pickle opcodes")]
    InvalidSequence,
    /// The reply is nested too deep, or has too many values.
    #[error("the answer is too large")]
    TooLarge,
}

/// Writes a list of strings, as fail2ban's server takes its commands.
#[must_use]
pub fn write(strings: &[&str]) -> Vec<u8> {
    let mut out = b"\x80\x02]".to_vec();
    out.push(b'(');
    for string in strings {
        let length = u32::try_from(string.len()).unwrap_or(u32::MAX);
        out.push(b'X');
        out.extend(length.to_le_bytes());
        out.extend(&string.as_bytes()[..length as usize]);
    }
    out.extend(b"e.");
    out
}

/// Parses one reply without its end marker.
///
/// # Errors
/// [`Unreadable`].
pub fn read(bytes: &[u8]) -> Result<PickleValue<'_>, Unreadable> {
    Reader { rest: bytes, stack: Vec::new(), marks: Vec::new(), memo: Vec::new(), values: 0 }.run()
}

struct Reader<'a> {
    rest: &'a [u8],
    stack: Vec<PickleValue<'a>>,
    /// The height of the stack at each MARK.
    marks: Vec<usize>,
    /// The values that a GET may copy. A list that is memoized before it is filled is not kept, because no reply
    /// has the same list twice.
    memo: Vec<Option<PickleValue<'a>>>,
    values: usize,
}

impl<'a> Reader<'a> {
    fn run(mut self) -> Result<PickleValue<'a>, Unreadable> {
        loop {
            let opcode = self.byte()?;
            if opcode == b'.' {
                let value = self.pop()?;
                return if self.stack.is_empty() {
                    Ok(value)
                } else {
                    Err(Unreadable::InvalidSequence)
                };
            }
            self.step(opcode)?;
        }
    }

    fn step(&mut self, opcode: u8) -> Result<(), Unreadable> {
        match opcode {
            0x80 => drop(self.byte()?),            // PROTO
            0x95 => drop(self.bytes(8)?),          // FRAME
            b'N' => self.push(PickleValue::None)?, // NONE
            0x88 => self.push(PickleValue::Bool(true))?,
            0x89 => self.push(PickleValue::Bool(false))?,
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
                // Python encodes bytes that are not UTF-8 as lone surrogates.
                let text = String::from_utf8_lossy(self.bytes(length)?);
                self.push(PickleValue::Text(text))?;
            }
            b'C' | b'B' => {
                let length = self.length(if opcode == b'C' { 1 } else { 4 })?;
                let text: String = self.bytes(length)?.iter().copied().map(char::from).collect();
                self.push(PickleValue::Text(text.into()))?;
            }
            b']' | b')' | 0x8f => self.push(PickleValue::List(Vec::new()))?,
            b'}' => self.push(PickleValue::Dict(Vec::new()))?,
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

    fn number(&mut self, opcode: u8) -> Result<PickleValue<'a>, Unreadable> {
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
            return Ok(PickleValue::Float(f64::from_be_bytes(bytes)));
        }
        if length > 8 {
            // Beyond the range of i64: clamp.
            let negative = bytes.last().is_some_and(|byte| *byte > 0x7f);
            return Ok(PickleValue::Int(if negative { i64::MIN } else { i64::MAX }));
        }
        let signed = matches!(opcode, b'J' | 0x8a) && bytes.last().is_some_and(|byte| *byte > 0x7f);
        let mut wide = [if signed { 0xff } else { 0 }; 8];
        wide[..length].copy_from_slice(bytes);
        Ok(PickleValue::Int(i64::from_le_bytes(wide)))
    }

    /// A class is a text until a call makes it an object, which keeps the arguments and later its state.
    fn object(&mut self, opcode: u8) -> Result<(), Unreadable> {
        match opcode {
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(PickleValue::Text(format!("{module}.{name}").into()))
            }
            0x93 => {
                let names = self.top(2)?;
                match names.as_slice() {
                    [PickleValue::Text(module), PickleValue::Text(name)] => {
                        self.push(PickleValue::Text(format!("{module}.{name}").into()))
                    }
                    _ => Err(Unreadable::InvalidSequence),
                }
            }
            b'b' => {
                let state = self.pop()?;
                check_depth(&state, 1)?;
                match self.stack.last_mut() {
                    Some(PickleValue::Object(_, parts)) => parts.push(state),
                    _ => return Err(Unreadable::InvalidSequence),
                }
                Ok(())
            }
            _ => {
                if opcode == 0x92 {
                    self.pop()?; // NEWOBJ_EX: arguments by name
                }
                match (self.pop()?, self.pop()?) {
                    (PickleValue::List(parts), PickleValue::Text(class)) => {
                        self.push(PickleValue::Object(class, parts))
                    }
                    _ => Err(Unreadable::InvalidSequence),
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
            let value =
                self.memo.get(index).cloned().flatten().ok_or(Unreadable::InvalidSequence)?;
            return self.push(value);
        }
        if index > self.memo.len() {
            return Err(Unreadable::InvalidSequence);
        }
        let kept = match self.stack.last().ok_or(Unreadable::InvalidSequence)? {
            PickleValue::Dict(_) => None,
            PickleValue::List(values) if values.is_empty() => None,
            value => Some(value.clone()),
        };
        if index == self.memo.len() {
            self.memo.push(kept);
        } else {
            self.memo[index] = kept;
        }
        Ok(())
    }

    fn push(&mut self, value: PickleValue<'a>) -> Result<(), Unreadable> {
        self.values += size(&value, 0)?;
        if self.values > MAX_VALUES {
            return Err(Unreadable::TooLarge);
        }
        self.stack.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Result<PickleValue<'a>, Unreadable> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(Unreadable::InvalidSequence);
        }
        self.stack.pop().ok_or(Unreadable::InvalidSequence)
    }

    fn top(&mut self, count: usize) -> Result<Vec<PickleValue<'a>>, Unreadable> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len().checked_sub(count) {
            Some(from) if from >= floor => Ok(self.stack.split_off(from)),
            _ => Err(Unreadable::InvalidSequence),
        }
    }

    fn marked(&mut self) -> Result<Vec<PickleValue<'a>>, Unreadable> {
        let from = self.marks.pop().ok_or(Unreadable::InvalidSequence)?;
        Ok(self.stack.split_off(from))
    }

    /// Pushes a tuple of values that [`Self::push`] has counted already.
    fn collect(&mut self, values: Vec<PickleValue<'a>>) -> Result<(), Unreadable> {
        let tuple = PickleValue::List(values);
        check_depth(&tuple, 0)?;
        self.stack.push(tuple);
        Ok(())
    }

    fn append(&mut self, values: Vec<PickleValue<'a>>) -> Result<(), Unreadable> {
        for value in &values {
            check_depth(value, 1)?;
        }
        match self.stack.last_mut() {
            Some(PickleValue::List(list)) => list.extend(values),
            _ => return Err(Unreadable::InvalidSequence),
        }
        Ok(())
    }

    fn set_items(&mut self, values: Vec<PickleValue<'a>>) -> Result<(), Unreadable> {
        if !values.len().is_multiple_of(2) {
            return Err(Unreadable::InvalidSequence);
        }
        for value in &values {
            check_depth(value, 1)?;
        }
        let Some(PickleValue::Dict(dict)) = self.stack.last_mut() else {
            return Err(Unreadable::InvalidSequence);
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

/// The number of values in a value, including itself.
fn size(value: &PickleValue<'_>, level: usize) -> Result<usize, Unreadable> {
    if level > MAX_DEPTH {
        return Err(Unreadable::TooLarge);
    }
    let mut total = 1;
    match value {
        PickleValue::List(values) | PickleValue::Object(_, values) => {
            for value in values {
                total += size(value, level + 1)?;
            }
        }
        PickleValue::Dict(items) => {
            for (key, value) in items {
                total += size(key, level + 1)? + size(value, level + 1)?;
            }
        }
        _ => {}
    }
    Ok(total)
}

/// Fails if a value is nested too deep.
fn check_depth(value: &PickleValue<'_>, level: usize) -> Result<(), Unreadable> {
    size(value, level).map(drop)
}
