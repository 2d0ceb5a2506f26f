//! The decision on one address in one jail (R19): a pure function of its facts, so that a table tests every combination.

/// The facts that the decision depends on.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "the columns of a table")]
pub struct ReconcileFacts {
    /// A peer claims the address.
    pub claimed: bool,
    /// This host has an import record of the address, intended or applied.
    pub imported: bool,
    /// fail2ban bans the address now.
    pub held: bool,
    /// The ban ends by itself within seconds.
    pub ends_soon: bool,
    /// This host must not ban the address (R1): it is in the jail's `ignoreip`, or this host's own.
    pub ignored: bool,
    /// fail2ban has a row of the address that has not expired, and may be about to restore the ban (R7).
    pub restoring: bool,
    /// The import ended together with its origin's ban, and the origin's unban may still arrive.
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

/// Decides by the facts. Each combination has one answer.
#[must_use]
pub fn decide(facts: ReconcileFacts) -> Decision {
    let ReconcileFacts { claimed, imported, held, ends_soon, ignored, restoring, just_ended } =
        facts;
    match (claimed, imported, held) {
        // A ban that fail2ban has yet to restore is not missing.
        (_, _, false) if restoring => Decision::Keep,
        (true, _, false) if ignored => Decision::Refuse,
        // If the origin's fail2ban is late, a new import would ban the address again for a moment.
        (true, true, false) if just_ended => Decision::Keep,
        (true, _, false) => Decision::Import,
        // A held ban without an import record is a local or manual ban, and stays (R9).
        (_, false, _) => Decision::Keep,
        // The address was added to `ignoreip`, or became this host's own, after the import.
        (true, true, true) if ignored => Decision::Unban,
        (true, true, true) => Decision::Keep,
        // `unbanip` would delete the history of `bantime.increment` (R13).
        (false, true, true) if ends_soon => Decision::Keep,
        (false, true, true) => Decision::Unban,
        (false, true, false) => Decision::Drop,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_combination_of_facts_has_its_decision() {
        use Decision::{Drop, Import, Keep, Refuse, Unban};
        // claimed, imported, held -> no other fact; ends soon; ignored; restoring; just ended
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
