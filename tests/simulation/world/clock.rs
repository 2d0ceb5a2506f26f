//! A clock is set back while the daemon dies and the broker loses its data: then only the host's own disk has its last
//! stamp.

use super::World;
use super::attack::Attack;

/// Within how many seconds the peers must import a detection.
const IMPORT_SECONDS: i64 = 12;

impl World {
    /// Returns the broken rule. In an order that the seed determines, the clock is set back, the daemon is killed, and
    /// the broker loses its data.
    pub(crate) fn live_with_clock_set_back(seed: u64) -> (Self, Result<(), String>) {
        let mut world = Self::new(seed);
        world.attacker.attack = Attack::None;
        world.faults = false;
        // With long bans, no ban has expired by the peers' clocks when it starts.
        for host in &mut world.hosts {
            (host.fail2ban.bantime, host.fail2ban.increment) = (3_600, false);
        }
        let result = world.set_clock_back();
        (world, result)
    }

    fn set_clock_back(&mut self) -> Result<(), String> {
        self.pass(20)?;
        let addresses = self.addresses.clone();
        for (round, address) in addresses.into_iter().enumerate() {
            let mut order = [0, 1, 2];
            self.chance.shuffle(&mut order);
            for what in order {
                match what {
                    0 => self.hosts[0].fail2ban.skew -= self.chance.within(1, 150),
                    1 => self.hosts[0].kill(&mut self.broker),
                    _ => {
                        self.broker.restart(false);
                        for host in &mut self.hosts {
                            host.cut(&mut self.broker);
                        }
                    }
                }
                self.log_line(format_args!("round {round}: {what} of [clock, kill, broker]"));
                let pause = self.chance.within(0, 3);
                self.pass(pause)?;
            }
            self.pass(4)?;
            self.hosts[0].fail2ban.detect(address, &mut self.chance);
            self.pass(IMPORT_SECONDS)?;
            for n in 1..self.hosts.len() {
                if !self.hosts[n].fail2ban.tickets.contains_key(&address) {
                    let name = self.hosts[n].name.clone();
                    return Err(self.report_violation(
                        "P1: a ban after a clock was set back",
                        &name,
                        address,
                    ));
                }
            }
        }
        Ok(())
    }

    fn pass(&mut self, seconds: i64) -> Result<(), String> {
        (0..seconds).try_for_each(|_| self.tick())
    }
}
