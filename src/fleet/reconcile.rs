//! The decision on one address in one jail. A table: every combination of what is known has one
//! answer.

/// How far an import came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Another host's word has come; fail2ban has not been asked yet.
    Heard,
    /// fail2ban is about to be told. A process that died here does not know whether it was.
    Intended,
    /// fail2ban was told, and bans the address for the others' sake.
    Done,
}

/// All that counts for the decision.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Some other host says that it bans the address.
    pub claimed: bool,
    /// How far an import of it came, if there is one.
    pub mark: Option<Mark>,
    /// fail2ban bans it now.
    pub held: bool,
    /// This host is never to ban it: it is in the jail's `ignoreip`, or its own.
    pub ignored: bool,
    /// What fail2ban's database says of a ban that lasts: perhaps it is only about to be restored.
    pub row: Option<Origin>,
}

/// Where a ban came from, by fail2ban's database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// fail2ban here detected it.
    Own,
    /// It was told to ban it: by us, or by its operator.
    Told,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Ban it.
    Import,
    /// Do not ban it, and say so.
    Refuse,
    /// It is banned already, for the others' sake.
    Keep,
    /// Free it: it was banned for the others' sake, and none of them claims it any more.
    Free,
    /// Ask again soon: fail2ban has only started, and will restore what is to be freed.
    Wait,
    /// Nothing: it is this host's own or its operator's, or nobody bans it.
    Forget,
}

/// Decides. What is banned here and was not imported belongs to this host or its operator: it is
/// never banned again and never freed.
#[must_use]
pub fn step(facts: Facts) -> Step {
    match facts {
        Facts { row: Some(Origin::Own), .. } => Step::Forget,
        Facts { claimed: true, held: false, ignored: true, .. } => Step::Refuse,
        Facts { claimed: true, held: false, .. } => Step::Import,
        Facts {
            claimed: false,
            held: false,
            mark: Some(Mark::Intended | Mark::Done),
            row: Some(Origin::Told),
            ..
        } => Step::Wait,
        Facts { held: true, mark: None | Some(Mark::Heard), .. } => Step::Forget,
        Facts { claimed: true, held: true, .. } => Step::Keep,
        Facts { claimed: false, held: true, .. } => Step::Free,
        Facts { claimed: false, held: false, .. } => Step::Forget,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_has_its_answer() {
        use Mark::{Done, Heard, Intended};
        use Step::{Forget, Free, Import, Keep, Refuse, Wait};
        // claimed, mark, held -> step, where it is not this host's own
        let table = [
            (true, None, false, Import),
            (true, Some(Heard), false, Import),
            (true, Some(Intended), false, Import),
            (true, Some(Done), false, Import),
            (true, None, true, Forget),
            (true, Some(Heard), true, Forget),
            (true, Some(Intended), true, Keep),
            (true, Some(Done), true, Keep),
            (false, None, false, Forget),
            (false, Some(Heard), false, Forget),
            (false, Some(Intended), false, Forget),
            (false, Some(Done), false, Forget),
            (false, None, true, Forget),
            (false, Some(Heard), true, Forget),
            (false, Some(Intended), true, Free),
            (false, Some(Done), true, Free),
        ];
        for (claimed, mark, held, expected) in table {
            let facts = Facts { claimed, mark, held, ignored: false, row: None };
            assert_eq!(step(facts), expected, "{facts:?}");
            let own = Facts { row: Some(Origin::Own), ..facts };
            assert_eq!(step(own), Forget, "{own:?}");
            let told = Facts { row: Some(Origin::Told), ..facts };
            let restoring = !claimed && !held && matches!(mark, Some(Intended | Done));
            assert_eq!(step(told), if restoring { Wait } else { expected }, "{told:?}");
            let ignored = Facts { ignored: true, ..facts };
            let refused = if expected == Import { Refuse } else { expected };
            assert_eq!(step(ignored), refused, "{ignored:?}");
        }
    }
}
