//! The decision on one address in one jail (R19): a pure function of its facts, so that a table tests every combination.

/// The facts that the decision depends on.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "the columns of a table")]
pub struct ReconcileFacts {
    /// Some other host claims the address.
    pub claimed: bool,
    /// This host imported it, or was about to.
    pub imported: bool,
    /// fail2ban bans it now.
    pub held: bool,
    /// It ends by itself within seconds.
    pub ends_soon: bool,
    /// This host is never to ban it: it is in the jail's `ignoreip`, or its own.
    pub ignored: bool,
    /// fail2ban has a row of it that lasts, and may still be about to restore it.
    pub restoring: bool,
    /// The import ended when its origin's ban does, and the origin's word may be on its way.
    pub just_ended: bool,
}

/// The decision on one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Ban the address for the peers that claim it (R9).
    Import,
    /// Do not ban it, and log the reason (R1).
    Refuse,
    /// Unban the import: no peer claims the address any more (R13).
    Unban,
    /// Delete the record of an import that is neither claimed nor held.
    Drop,
    /// Change nothing.
    Keep,
}

/// Decides.
#[must_use]
pub fn decide(facts: ReconcileFacts) -> Decision {
    let ReconcileFacts { claimed, imported, held, ends_soon, ignored, restoring, just_ended } =
        facts;
    match (claimed, imported, held) {
        // What fail2ban has yet to restore is neither missing nor gone.
        (_, _, false) if restoring => Decision::Keep,
        (true, _, false) if ignored => Decision::Refuse,
        // It would be banned once more for a moment, where the origin's fail2ban is late.
        (true, true, false) if just_ended => Decision::Keep,
        (true, _, false) => Decision::Import,
        // What is held and not marked is this host's own or its operator's, and stays theirs.
        (_, false, _) => Decision::Keep,
        // It was put into `ignoreip`, or became this host's own, since it was imported.
        (true, true, true) if ignored => Decision::Unban,
        (true, true, true) => Decision::Keep,
        // `unbanip` would delete the host's own history.
        (false, true, true) if ends_soon => Decision::Keep,
        (false, true, true) => Decision::Unban,
        (false, true, false) => Decision::Drop,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_has_its_answer() {
        use Decision::{Drop, Import, Keep, Refuse, Unban};
        // claimed, marked, held -> as it is; ends soon; ignored; restoring; just ended
        let table = [
            (true, false, false, [Import, Import, Refuse, Keep, Import]),
            (true, true, false, [Import, Import, Refuse, Keep, Keep]),
            (true, false, true, [Keep, Keep, Keep, Keep, Keep]),
            (true, true, true, [Keep, Keep, Unban, Keep, Keep]),
            (false, false, false, [Keep, Keep, Keep, Keep, Keep]),
            (false, true, false, [Drop, Drop, Drop, Keep, Drop]),
            (false, false, true, [Keep, Keep, Keep, Keep, Keep]),
            (false, true, true, [Unban, Keep, Unban, Unban, Unban]),
        ];
        for (claimed, imported, held, expected) in table {
            let facts = ReconcileFacts {
                claimed,
                imported,
                held,
                ends_soon: false,
                ignored: false,
                restoring: false,
                just_ended: false,
            };
            let answers = [
                decide(facts),
                decide(ReconcileFacts { ends_soon: true, ..facts }),
                decide(ReconcileFacts { ignored: true, ..facts }),
                decide(ReconcileFacts { restoring: true, ..facts }),
                decide(ReconcileFacts { just_ended: true, ..facts }),
            ];
            assert_eq!(answers, expected, "{facts:?}");
        }
    }
}
