//! `f2bmqtt watch`: the fleet as it lives, for a terminal that is left open; a line for each event in a pipe.

pub mod screen;
pub mod seen;

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event as Input, KeyCode, KeyEventKind, KeyModifiers};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::clock::Clock;
use super::gather::FetchStep;
use super::out::Out;
use super::visit;
use crate::broker::{LinkEvent, MqttLink};
use crate::clock::now_millis;
use crate::config::{Config, Topic};
use crate::error::Error;
use crate::journal::{say, warn};
use crate::runtime;
use crate::text::sanitize;
use screen::Screen;
use seen::{FeedItem, WatchModel};

/// How often the screen is drawn at most.
const FRAME: Duration = Duration::from_millis(200);

/// Watches until it is told to stop.
///
/// # Errors
/// Any [`Error`]
pub fn run() -> Result<(), Error> {
    let config = Config::load()?;
    let out = Out::stdout();
    if !out.terminal || !io::stdin().is_terminal() {
        return runtime::run(lines(&config));
    }
    let screen = Screen {
        title: format!("f2bmqtt on {}, {}", config.node, config.topic.events()),
        broker: Err("connecting".to_owned()),
        colour: out.colour,
    };
    let mut terminal = ratatui::try_init().map_err(Error::Start)?;
    let result = runtime::run(full(&config, screen, &mut terminal));
    ratatui::restore();
    result
}

/// Where the fleet is heard.
struct FeedListener {
    link: MqttLink,
    topic: Topic,
    seen: WatchModel,
}

/// What came of a moment of listening.
enum WatchEvent {
    /// The link is up, to this broker.
    Connected(String),
    /// It is down, and why.
    Lost(String),
    /// Something happened in the fleet.
    News(FeedItem),
}

impl FeedListener {
    fn new(config: &Config) -> Self {
        let topics = [vec![config.topic.events()], visit::first(&config.topic)].concat();
        let link = MqttLink::new(config, visit::client(config, topics));
        Self {
            link,
            topic: config.topic.clone(),
            seen: WatchModel::new(config.signing.is_some(), now_millis()),
        }
    }

    /// The next thing that happens; safe to drop.
    async fn next(&mut self) -> WatchEvent {
        loop {
            let event = self.link.event().await;
            let came = self.take(event);
            self.ask();
            if let Some(came) = came {
                return came;
            }
        }
    }

    fn take(&mut self, event: LinkEvent) -> Option<WatchEvent> {
        match event {
            LinkEvent::Connected(broker) => {
                self.seen.connected(now_millis());
                Some(WatchEvent::Connected(broker.to_string()))
            }
            LinkEvent::Lost { broker, why } => {
                Some(WatchEvent::Lost(format!("no connection to the broker {broker}: {why}")))
            }
            LinkEvent::SubscribeRefused(_) => {
                let topic = self.topic.branches();
                let what = format!("the broker refuses the subscription to {topic}");
                Some(WatchEvent::Lost(format!("{what}. Check the broker's access rules")))
            }
            LinkEvent::Message(message) => {
                self.seen.hear(&message, now_millis()).map(WatchEvent::News)
            }
            LinkEvent::Published(_) | LinkEvent::Refused(_) | LinkEvent::QosLowered => None,
        }
    }

    /// Asks for what is missing of the fleet.
    fn ask(&mut self) {
        let hosts = match self.seen.gathering().next(now_millis()) {
            FetchStep::Ask(hosts) => hosts,
            FetchStep::Done => self.seen.gathering().new_shards(),
            FetchStep::Listen(_) => Vec::new(),
        };
        for host in hosts {
            self.link.subscribe(&[self.topic.shards(&host)]);
        }
    }
}

/// A line for each event, with tabs between: time, what, address, jail, host, more.
async fn lines(config: &Config) -> Result<(), Error> {
    let mut ear = FeedListener::new(config);
    let mut term = signal(SignalKind::terminate()).map_err(Error::Start)?;
    let mut int = signal(SignalKind::interrupt()).map_err(Error::Start)?;
    let mut pipe = signal(SignalKind::pipe()).map_err(Error::Start)?;
    loop {
        let came = tokio::select! {
            came = ear.next() => came,
            _ = term.recv() => return Ok(()),
            _ = int.recv() => return Ok(()),
            _ = pipe.recv() => return Ok(()),
        };
        match came {
            WatchEvent::Connected(_) => {}
            WatchEvent::Lost(why) => warn(sanitize(&why)),
            WatchEvent::News(news) => {
                let time = Clock::new(now_millis() / 1000)?;
                let words = [&[time.local(time.now)][..], &news.columns()].concat();
                let words: Vec<_> = words.iter().map(|word| sanitize(word)).collect();
                say(words.join("\t"));
            }
        }
    }
}

/// The full screen.
async fn full(
    config: &Config,
    mut screen: Screen,
    terminal: &mut DefaultTerminal,
) -> Result<(), Error> {
    let mut ear = FeedListener::new(config);
    let mut keys = keys();
    let mut term = signal(SignalKind::terminate()).map_err(Error::Start)?;
    let mut int = signal(SignalKind::interrupt()).map_err(Error::Start)?; // from elsewhere: ctrl-c is a key
    let mut hang_up = signal(SignalKind::hangup()).map_err(Error::Start)?;
    let mut tick = interval(FRAME);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut dirty, mut second) = (true, 0);
    loop {
        tokio::select! {
            came = ear.next() => {
                dirty = true;
                match came {
                    WatchEvent::Connected(broker) => screen.broker = Ok(format!("broker {broker}")),
                    WatchEvent::Lost(why) => screen.broker = Err(why),
                    WatchEvent::News(_) => {}
                }
            }
            input = keys.recv() => match input {
                None => return Ok(()),
                Some(input) if ends(&input) => return Ok(()),
                Some(_) => dirty = true,
            },
            _ = tick.tick() => {
                ear.ask();
                ear.seen.turn(now_millis());
                let clock = Clock::new(now_millis() / 1000)?;
                if dirty || clock.now != second {
                    (dirty, second) = (false, clock.now);
                    let drawn = terminal.draw(|frame| screen.draw(frame, &mut ear.seen, &clock));
                    drawn.map_err(Error::Start)?;
                }
            }
            _ = term.recv() => return Ok(()),
            _ = int.recv() => return Ok(()),
            _ = hang_up.recv() => return Ok(()),
        }
    }
}

/// What is typed, and how the terminal changes, from a thread that does nothing but wait for it.
fn keys() -> mpsc::Receiver<Input> {
    let (sender, keys) = mpsc::channel(16);
    std::thread::spawn(move || {
        while let Ok(input) = event::read() {
            if sender.blocking_send(input).is_err() {
                return;
            }
        }
    });
    keys
}

/// Whether it is q, escape or ctrl-c.
fn ends(input: &Input) -> bool {
    let Input::Key(key) = input else { return false };
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press
        && match key.code {
            KeyCode::Char('q') | KeyCode::Esc => true,
            KeyCode::Char('c') => control,
            _ => false,
        }
}
