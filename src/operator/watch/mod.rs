//! `f2bmqtt watch`: a live screen on a terminal, or one line per event in a pipe.

mod model;
mod screen;

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event as Input, KeyCode, KeyEventKind, KeyModifiers};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::render::Out;
use super::time_format::Clock;
use crate::broker::fetch::FetchStep;
use crate::broker::{LinkEvent, MqttLink, fleet_client};
use crate::config::{Config, Topic};
use crate::error::Error;
use crate::model::text::sanitize;
use crate::sys::clock::now_millis;
use crate::sys::log::{info, warn};
use crate::sys::runtime;
use model::{FeedItem, WatchModel};
use screen::Screen;

/// The least time between two frames.
const FRAME_INTERVAL: Duration = Duration::from_millis(200);

/// Watches until a key or a signal ends the command.
///
/// # Errors
/// Any [`Error`]
pub fn run() -> Result<(), Error> {
    let config = Config::load()?;
    let out = Out::stdout();
    if !out.terminal || !io::stdin().is_terminal() {
        return runtime::run(print_lines(&config));
    }
    let screen = Screen {
        title: format!("f2bmqtt on {}, {}", config.node, config.topic.events()),
        broker: Err("connecting".to_owned()),
        colour: out.colour,
    };
    let mut terminal = ratatui::try_init().map_err(Error::Start)?;
    let result = runtime::run(run_screen(&config, screen, &mut terminal));
    ratatui::restore();
    result
}

/// The connection to the broker, and the model that its messages change.
struct FeedListener {
    link: MqttLink,
    topic: Topic,
    model: WatchModel,
}

/// What the connection delivered.
enum WatchEvent {
    /// The link to this broker is up.
    Connected(String),
    /// The link is down, and why.
    Lost(String),
    Item(FeedItem),
}

impl FeedListener {
    fn new(config: &Config) -> Self {
        let topics =
            [vec![config.topic.events()], fleet_client::initial_topics(&config.topic)].concat();
        let link = MqttLink::new(config, fleet_client::client_options(config, topics));
        Self {
            link,
            topic: config.topic.clone(),
            model: WatchModel::new(config.signing.is_some(), now_millis()),
        }
    }

    /// Waits for the next event. The future is safe to drop.
    async fn next(&mut self) -> WatchEvent {
        loop {
            let event = self.link.event().await;
            let event = self.handle(event);
            self.request_missing();
            if let Some(event) = event {
                return event;
            }
        }
    }

    fn handle(&mut self, event: LinkEvent) -> Option<WatchEvent> {
        match event {
            LinkEvent::Connected(broker) => {
                self.model.connected(now_millis());
                Some(WatchEvent::Connected(broker.to_string()))
            }
            LinkEvent::Lost { broker, why, .. } => {
                Some(WatchEvent::Lost(format!("no connection to the broker {broker}: {why}")))
            }
            LinkEvent::SubscribeRejected(_) => {
                let topic = self.topic.branches();
                let what = format!("the broker refuses the subscription to {topic}");
                Some(WatchEvent::Lost(format!("{what}. Check the broker's access rules")))
            }
            LinkEvent::Message(message) => {
                self.model.apply(&message, now_millis()).map(WatchEvent::Item)
            }
            LinkEvent::Published(_) | LinkEvent::Rejected(_) | LinkEvent::QosLowered => None,
        }
    }

    /// Subscribes to missing shards.
    fn request_missing(&mut self) {
        let hosts = match self.model.fetch().next(now_millis()) {
            FetchStep::Request(hosts) => hosts,
            FetchStep::Done => self.model.fetch().new_shards(),
            FetchStep::Listen(_) => Vec::new(),
        };
        for host in hosts {
            self.link.subscribe(&[self.topic.shards(&host)]);
        }
    }
}

/// Prints a line for each event, with tab-separated columns: time, event, address, jail, host, details.
async fn print_lines(config: &Config) -> Result<(), Error> {
    let mut listener = FeedListener::new(config);
    let mut term = signal(SignalKind::terminate()).map_err(Error::Start)?;
    let mut int = signal(SignalKind::interrupt()).map_err(Error::Start)?;
    let mut pipe = signal(SignalKind::pipe()).map_err(Error::Start)?;
    loop {
        let event = tokio::select! {
            event = listener.next() => event,
            _ = term.recv() => return Ok(()),
            _ = int.recv() => return Ok(()),
            _ = pipe.recv() => return Ok(()),
        };
        match event {
            WatchEvent::Connected(_) => {}
            WatchEvent::Lost(why) => warn(sanitize(&why)),
            WatchEvent::Item(item) => {
                let time = Clock::new(now_millis() / 1000)?;
                let columns = [&[time.local(time.now)][..], &item.columns()].concat();
                let columns: Vec<_> = columns.iter().map(|column| sanitize(column)).collect();
                info(columns.join("\t"));
            }
        }
    }
}

/// Draws the screen until a key or a signal ends the command.
async fn run_screen(
    config: &Config,
    mut screen: Screen,
    terminal: &mut DefaultTerminal,
) -> Result<(), Error> {
    let mut listener = FeedListener::new(config);
    let mut keys = keys();
    let mut term = signal(SignalKind::terminate()).map_err(Error::Start)?;
    let mut int = signal(SignalKind::interrupt()).map_err(Error::Start)?; // from elsewhere: ctrl-c is a key
    let mut hang_up = signal(SignalKind::hangup()).map_err(Error::Start)?;
    let mut tick = interval(FRAME_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut is_dirty, mut drawn_second) = (true, 0);
    loop {
        tokio::select! {
            event = listener.next() => {
                is_dirty = true;
                match event {
                    WatchEvent::Connected(broker) => screen.broker = Ok(format!("broker {broker}")),
                    WatchEvent::Lost(why) => screen.broker = Err(why),
                    WatchEvent::Item(_) => {}
                }
            }
            input = keys.recv() => match input {
                None => return Ok(()),
                Some(input) if is_quit(&input) => return Ok(()),
                Some(_) => is_dirty = true,
            },
            _ = tick.tick() => {
                listener.request_missing();
                listener.model.advance(now_millis());
                let clock = Clock::new(now_millis() / 1000)?;
                if is_dirty || clock.now != drawn_second {
                    (is_dirty, drawn_second) = (false, clock.now);
                    let drawn = terminal.draw(|frame| screen.draw(frame, &mut listener.model, &clock));
                    drawn.map_err(Error::Start)?;
                }
            }
            _ = term.recv() => return Ok(()),
            _ = int.recv() => return Ok(()),
            _ = hang_up.recv() => return Ok(()),
        }
    }
}

/// Keys and changes of the terminal's size. A thread reads them, because the read blocks.
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

/// Whether the key is q, escape or ctrl-c.
fn is_quit(input: &Input) -> bool {
    let Input::Key(key) = input else { return false };
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press
        && match key.code {
            KeyCode::Char('q') | KeyCode::Esc => true,
            KeyCode::Char('c') => control,
            _ => false,
        }
}
