//! The screen of `watch`: the hosts, the jails, the rate of bans, and the last events.

use std::cmp::Reverse;

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Sparkline};

use super::model::{BanCounts, FeedItem, RATE_SECONDS, WatchModel};
use crate::broker::fleet_view::HostView;
use crate::model::HostName;
use crate::model::text::{count, sanitize};
use crate::operator::time_format::Clock;

/// The parts of the screen that the model does not have.
#[derive(Debug)]
pub(super) struct Screen {
    /// This host, and the fleet's topic.
    pub(super) title: String,
    /// The connected broker, or why the connection failed.
    pub(super) broker: Result<String, String>,
    /// The terminal may show colours.
    pub(super) colour: bool,
}

impl Screen {
    /// Draws one frame.
    pub(super) fn draw(&self, frame: &mut Frame<'_>, model: &mut WatchModel, clock: &Clock) {
        let bans = model.count(clock.now * 1000).clone();
        let hosts =
            u16::try_from(model.view().hosts().len().max(bans.jails.len())).unwrap_or(u16::MAX);
        let mut rest = frame.area();
        let middle = (hosts.saturating_add(2)).clamp(4, (rest.height / 3).max(4));
        let head = cut_top(&mut rest, 2);
        write_lines(frame, head, self.head(model, &bans, clock));
        self.rate(frame, model, cut_top(&mut rest, 5));
        let fleet = cut_top(&mut rest, middle);
        let hosts = Rect { width: fleet.width * 3 / 5, ..fleet };
        let jails = Rect { x: hosts.right(), width: fleet.width - hosts.width, ..fleet };
        self.hosts(frame, model, &bans, hosts);
        Self::jails(frame, &bans, jails);
        self.feed(frame, model, clock, rest);
    }

    fn style(&self, colour: Color) -> Style {
        if self.colour { Style::new().fg(colour) } else { Style::new() }
    }

    fn head(&self, model: &WatchModel, bans: &BanCounts, clock: &Clock) -> Vec<Line<'static>> {
        let broker = match &self.broker {
            Ok(broker) => Span::styled(sanitize(broker).into_owned(), self.style(Color::Green)),
            Err(why) => Span::styled(sanitize(why).into_owned(), self.style(Color::Red)),
        };
        let title = Span::styled(format!(" {}  ", sanitize(&self.title)), Modifier::BOLD);
        let hosts = model.view().hosts();
        let online = hosts.values().filter(|host_view| host_view.is_online()).count();
        let (all, bans) = (count(hosts.len(), "host"), count(bans.all, "ban"));
        let time = clock.local(clock.now);
        let line = format!(" {all}, {online} online; {bans}  {time}  q quits");
        vec![Line::from(vec![title, broker]), Line::from(line)]
    }

    fn rate(&self, frame: &mut Frame<'_>, model: &WatchModel, area: Rect) {
        let rate = model.rate();
        let (sum, most) = (rate.iter().sum::<u64>(), rate.iter().max().copied().unwrap_or(0));
        let title = format!(" {sum} bans in the last minute, peak {most} a second ");
        let block = block(&title);
        // All seconds are equally wide, and the current one is at the right.
        let room = usize::from(block.inner(area).width);
        let (wide, from) = ((room / RATE_SECONDS).max(1), RATE_SECONDS.saturating_sub(room));
        let bars = rate[from..].iter().flat_map(|count| std::iter::repeat_n(*count, wide));
        let gap = room.saturating_sub(wide * (RATE_SECONDS - from));
        let bars: Vec<u64> = std::iter::repeat_n(0, gap).chain(bars).collect();
        let bars = Sparkline::default().data(bars).style(self.style(Color::Yellow));
        frame.render_widget(bars.block(block), area);
    }

    fn hosts(&self, frame: &mut Frame<'_>, model: &WatchModel, bans: &BanCounts, area: Rect) {
        let mut hosts: Vec<_> = model.view().hosts().iter().collect();
        hosts.sort_by_key(|(host, host_view)| (host_view.is_online(), (*host).clone()));
        let lines = hosts.into_iter().map(|(host, host_view)| {
            let count = bans.hosts.get(host).copied().unwrap_or(0);
            self.host_line(host, host_view, count)
        });
        let lines = limit_lines(lines.collect(), area, "hosts");
        write_framed(frame, area, " hosts and their bans ", lines);
    }

    fn host_line(&self, host: &HostName, host_view: &HostView, bans: usize) -> Line<'static> {
        let (colour, state) = match (host_view.presence(), host_view.is_online()) {
            (None, _) => (Color::DarkGray, "unknown"),
            (_, true) => (Color::Green, "online"),
            (_, false) => (Color::Red, "offline"),
        };
        let missing = if host_view.missing_shards() > 0 { ", incomplete" } else { "" };
        Line::from(vec![
            Span::from(format!(" {:<20.20} ", sanitize(host.as_str()))),
            Span::styled(format!("{state:<8}"), self.style(colour)),
            Span::from(format!("{bans:>7}{missing}")),
        ])
    }

    fn jails(frame: &mut Frame<'_>, bans: &BanCounts, area: Rect) {
        let mut jails: Vec<_> = bans.jails.iter().collect();
        jails.sort_by_key(|(jail, bans)| (Reverse(**bans), (*jail).clone()));
        let lines = jails.into_iter().map(|(jail, bans)| {
            Line::from(format!(" {:<18.18} {bans:>8}", sanitize(jail.as_str())))
        });
        let lines = limit_lines(lines.collect(), area, "jails");
        write_framed(frame, area, " jails ", lines);
    }

    fn feed(&self, frame: &mut Frame<'_>, model: &WatchModel, clock: &Clock, area: Rect) {
        let items = model.items().take(area.height.into());
        let lines = items.map(|(at, item)| self.item_line(clock.local(*at), item));
        write_framed(frame, area, " events ", lines.collect());
    }

    fn item_line(&self, mut time: String, item: &FeedItem) -> Line<'static> {
        let [what, address, jail, host, details] = item.columns();
        let colour = match what.as_str() {
            "ban" | "offline" => Color::Red,
            _ => Color::Green,
        };
        // Only the time of day: an ISO 8601 date has 10 characters.
        let time = time.split_off(11);
        let rest = format!("{address:<16} {jail:<14.14} {host:<16.16} {details}");
        Line::from(vec![
            Span::from(format!(" {time} ")),
            Span::styled(format!("{what:<8}"), self.style(colour)),
            Span::from(sanitize(&rest).into_owned()),
        ])
    }
}

/// Cuts rows off the top of an area.
fn cut_top(area: &mut Rect, height: u16) -> Rect {
    let height = height.min(area.height);
    let top = Rect { height, ..*area };
    *area = Rect { y: area.y + height, height: area.height - height, ..*area };
    top
}

/// Writes lines, as many as fit.
fn write_lines(frame: &mut Frame<'_>, area: Rect, lines: Vec<Line<'static>>) {
    for (row, line) in area.rows().zip(lines) {
        frame.buffer_mut().set_line(row.x, row.y, &line, row.width);
    }
}

/// Writes lines into a frame with a title.
fn write_framed(frame: &mut Frame<'_>, area: Rect, title: &str, lines: Vec<Line<'static>>) {
    let block = block(title);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    write_lines(frame, inner, lines);
}

fn block(title: &str) -> Block<'_> {
    Block::bordered().title(Span::styled(title, Modifier::BOLD))
}

/// Limits lines to the area; the last one shows the number of the rest.
fn limit_lines(mut lines: Vec<Line<'static>>, area: Rect, what: &str) -> Vec<Line<'static>> {
    let room = usize::from(area.height.saturating_sub(2));
    if lines.len() > room && room > 0 {
        let left = lines.len() - room + 1;
        lines.truncate(room - 1);
        lines.push(Line::from(format!(" and {left} more {what}")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::guard::gate::tests::admit;

    const NOW: i64 = 1_795_342_600;

    fn drawn(
        width: u16,
        height: u16,
        broker: Result<String, String>,
        model: &mut WatchModel,
    ) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        let screen = Screen { title: "f2bmqtt on web1".to_owned(), broker, colour: false };
        let clock = Clock::new(NOW).unwrap();
        terminal.draw(|frame| screen.draw(frame, model, &clock)).unwrap();
        let buffer = terminal.backend().buffer();
        let mut rows = Vec::new();
        for y in 0..height {
            let row: String = (0..width).map(|x| buffer[(x, y)].symbol()).collect();
            rows.push(row.trim_end().to_owned());
        }
        rows
    }

    fn sample_model() -> WatchModel {
        let mut model = WatchModel::new(false, (NOW - 30) * 1000);
        for n in 0..9 {
            let state = if n == 7 { "offline" } else { "online" };
            let presence = format!(r#"{{"v":1,"state":"{state}","jails":["sshd"]}}"#);
            model.apply(&admit(&format!("host/web{n}"), presence.as_bytes()).unwrap(), NOW * 1000);
            let shard = format!(
                r#"{{"v":1,"host":"web{n}","stamp":5,"part":0,"parts":1,"bans":[["sshd","192.0.2.{n}",{NOW},600]]}}"#
            );
            model.apply(&admit(&format!("state/web{n}/0"), shard.as_bytes()).unwrap(), NOW * 1000);
            let ban = format!(
                r#"{{"action":"ban","ipmset":"sshd","ip":"192.0.2.{n}","host":"web{n}","bantime":600}}"#
            );
            model.apply(&admit("ban", ban.as_bytes()).unwrap(), (NOW - 9 + n) * 1000);
        }
        model.advance(NOW * 1000);
        model
    }

    #[test]
    fn screen_of_80_by_24_shows_all_panels() {
        let lines = drawn(80, 24, Ok("broker 192.168.1.10:1883".to_owned()), &mut sample_model());
        assert_eq!(lines[0], " f2bmqtt on web1  broker 192.168.1.10:1883");
        assert!(lines[1].starts_with(" 9 hosts, 8 online; 9 bans  "), "{lines:#?}");
        assert!(lines[1].ends_with("q quits"));
        assert!(lines[2].starts_with("┌ 9 bans in the last minute, peak 1 a second ─"));
        for text in [
            "│ web7                 offline       1",
            "and 4 more hosts",
            "│ sshd                      9",
            "ban     192.0.2.8        sshd           web8             for 10m",
        ] {
            assert!(lines.iter().any(|line| line.contains(text)), "{text}: {lines:#?}");
        }
        assert!(lines[23].starts_with('└') && lines.iter().all(|line| line.chars().count() <= 80));
    }

    #[test]
    fn screen_of_any_size_is_drawn() {
        let lost = Err("no connection to the broker: no broker listens on this port".to_owned());
        for (width, height) in [(1, 1), (10, 3), (40, 10), (80, 5), (300, 100)] {
            let rows = drawn(width, height, lost.clone(), &mut sample_model());
            assert_eq!(rows.len(), usize::from(height));
        }
        let lines = drawn(80, 24, lost, &mut WatchModel::new(false, NOW * 1000));
        assert_eq!(
            lines[0],
            " f2bmqtt on web1  no connection to the broker: no broker listens on this port"
        );
    }
}
