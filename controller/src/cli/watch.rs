//! Following a rollout: a live tree on a terminal, one line per change otherwise, the API's changes as JSON lines.
//!
//! What is followed is the controller's stream of revisions. A broken connection is made again and goes on after
//! the last revision seen; Ctrl-C detaches, and the rollout goes on.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use clap::Args;
use tokio::time::{Instant, sleep, sleep_until};
use tonic::Streaming;
use upfleet_api::v1;

use super::{
    app::{App, Format, json, print},
    client::Client,
    failure::Result,
    now,
    page::pages,
    render::{self, Model, id},
};
use crate::exit::Exit;

/// How often the live tree is drawn again where nothing changed: its clocks run.
const REDRAW: Duration = Duration::from_millis(250);
/// Between two tries to connect again.
const RECONNECT: Duration = Duration::from_millis(500);
/// After so long without a connection a watch that has no time-out gives up.
const GIVE_UP: Duration = Duration::from_secs(300);

/// How long to wait.
#[derive(Args, Clone, Debug, Default)]
pub struct WaitArgs {
    /// Print the rollout's id and do not wait.
    #[arg(long)]
    pub no_wait: bool,
    /// Exit with 0 also where some nodes failed, were skipped or stayed away within policy.
    #[arg(long)]
    pub allow_pending: bool,
}

/// What ends the watching.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// The rollout rests: it is over, or waits for a person.
    Rest,
    /// It is over.
    End,
}

/// Follows a rollout that was just started, from its first change on.
///
/// # Errors
/// Where the controller stays away or no longer accepts the caller.
pub async fn new(app: &App, client: &Client, rollout: v1::Rollout, wait: &WaitArgs) -> Result<Exit> {
    let name = rollout.name.clone();
    // The past of a new rollout is short: all of it is printed.
    let mut model = load(client, &name).await?;
    model.rollout = v1::Rollout { revision: 0, state: 0, waves: Vec::new(), ..rollout };
    follow(app, client, model, Until::Rest, wait).await
}

/// Follows a rollout from where it stands now.
///
/// # Errors
/// Where there is none of that name, the controller stays away or no longer accepts the caller.
pub async fn existing(app: &App, client: &Client, name: &str, until: Until, wait: &WaitArgs) -> Result<Exit> {
    let model = load(client, name).await?;
    follow(app, client, model, until, wait).await
}

/// Reads a rollout with its upgrades, and the rollout that puts it back.
pub(super) async fn load(client: &Client, name: &str) -> Result<Model> {
    let mut model = load_one(client, name).await?;
    if !model.rollout.reverted_by.is_empty() {
        model.revert = Some(Box::new(load_one(client, &model.rollout.reverted_by.clone()).await?));
    }
    Ok(model)
}

async fn load_one(client: &Client, name: &str) -> Result<Model> {
    // The rollout first: changes between both reads come again and change nothing.
    let request = v1::GetRolloutRequest { name: name.to_owned() };
    let rollout = client.rollouts().get_rollout(request).await?.into_inner().rollout.unwrap_or_default();
    let request = v1::ListUpgradesRequest { parent: name.to_owned(), ..Default::default() };
    let upgrades = pages!(client.rollouts(), list_upgrades, request, upgrades);
    let upgrades = upgrades.into_iter().map(|upgrade| (id(&upgrade.node).to_owned(), upgrade)).collect();
    Ok(Model { rollout, upgrades, revert: None })
}

async fn follow(app: &App, client: &Client, model: Model, until: Until, wait: &WaitArgs) -> Result<Exit> {
    let deadline = app.globals.timeout.map(|timeout| Instant::now() + timeout);
    let mut screen = Screen::new(app, model);
    let exit = tokio::select! {
        exit = changes(client, &mut screen, until) => exit,
        () = passed(deadline) => Ok(Exit::TimedOut),
        _ = tokio::signal::ctrl_c() => Ok(Exit::Interrupted),
    };
    screen.leave();
    let exit = exit?;
    let model = &screen.model;
    let name = id(&model.rollout.name);
    match exit {
        Exit::Interrupted => {
            app.note(format!("Detached; {name} goes on. Watch it again: upfleet rollout watch {name}"));
            return Ok(exit);
        }
        Exit::TimedOut => app.note(format!("{name} is still under way after the time-out; it goes on.")),
        _ => {}
    }
    match app.globals.output {
        Format::Json => print(&json(&model.rollout, true)),
        Format::Jsonl => {}
        Format::Table | Format::Wide => app.say(render::summary(model, exit, now(), app.paint())),
    }
    let borne = exit == Exit::WithFailures && wait.allow_pending;
    Ok(if borne { Exit::Success } else { exit })
}

async fn passed(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Takes changes in until the rollout ends or rests; connects again after breaks.
async fn changes(client: &Client, screen: &mut Screen<'_>, until: Until) -> Result<Exit> {
    let mut broken_since: Option<Instant> = None;
    loop {
        match one_stream(client, screen, until).await {
            Ok(Some(exit)) => return Ok(exit),
            // The stream ended in good order without an end of the rollout: the controller shuts down.
            Ok(None) => {}
            Err(failure) if !failure.is_transient() => return Err(failure),
            Err(failure) => {
                let failure = client.explain(failure).await;
                if !failure.is_transient() {
                    return Err(failure);
                }
                let since = *broken_since.get_or_insert_with(Instant::now);
                if screen.app.globals.timeout.is_none() && since.elapsed() > GIVE_UP {
                    return Err(failure);
                }
            }
        }
        screen.connected(false);
        sleep(RECONNECT).await;
        if screen.seen_connected {
            broken_since = None;
        }
    }
}

async fn one_stream(client: &Client, screen: &mut Screen<'_>, until: Until) -> Result<Option<Exit>> {
    if let Some(exit) = screen.ended(until) {
        return Ok(Some(exit));
    }
    let request = v1::WatchRolloutRequest {
        name: screen.model.rollout.name.clone(),
        from_revision: screen.model.rollout.revision,
        progress: screen.live,
    };
    let mut stream = client.rollouts().watch_rollout(request).await?.into_inner();
    screen.connected(true);
    let mut revert: Option<Streaming<v1::WatchRolloutResponse>> = None;
    loop {
        if revert.is_none() && !screen.model.rollout.reverted_by.is_empty() {
            revert = Some(screen.join_revert(client).await?);
        }
        tokio::select! {
            change = stream.message() => match change? {
                Some(change) => screen.take(&change),
                None => return Ok(screen.ended(until)),
            },
            change = next(&mut revert) => match change? {
                Some(change) => screen.take_revert(&change),
                // Its end is told by the stream of the rollout that it puts back.
                None => revert = None,
            },
            () = sleep(REDRAW), if screen.live => screen.draw(),
        }
        if let Some(exit) = screen.ended(until) {
            return Ok(Some(exit));
        }
    }
}

async fn next(
    stream: &mut Option<Streaming<v1::WatchRolloutResponse>>,
) -> Result<Option<v1::WatchRolloutResponse>, tonic::Status> {
    match stream {
        Some(stream) => stream.message().await,
        None => std::future::pending().await,
    }
}

/// What is on the terminal.
struct Screen<'a> {
    app: &'a App,
    model: Model,
    live: bool,
    /// Lines of the tree that are to be overwritten.
    drawn: usize,
    seen_connected: bool,
    lost: bool,
}

impl<'a> Screen<'a> {
    fn new(app: &'a App, model: Model) -> Self {
        let live = app.is_live();
        if live {
            // The cursor would jump about.
            let _ = write!(io::stdout(), "\x1b[?25l");
        }
        let mut screen = Self { app, model, live, drawn: 0, seen_connected: false, lost: false };
        screen.draw();
        screen
    }

    fn ended(&self, until: Until) -> Option<Exit> {
        let exit = self.model.exit();
        match until {
            Until::Rest => exit,
            Until::End => exit.filter(|_| self.model.is_terminal()),
        }
    }

    fn connected(&mut self, connected: bool) {
        if self.lost == connected && (self.seen_connected || self.lost) {
            let text = if connected {
                "connected again"
            } else {
                "the connection to the controller is lost; connecting again"
            };
            if !self.live {
                self.app.note(text);
            }
        }
        self.seen_connected = connected;
        self.lost = !connected;
        self.draw();
    }

    /// Begins to follow the rollout that puts nodes back.
    async fn join_revert(&mut self, client: &Client) -> Result<Streaming<v1::WatchRolloutResponse>> {
        let name = self.model.rollout.reverted_by.clone();
        let linked = load_one(client, &name).await?;
        let request =
            v1::WatchRolloutRequest { name, from_revision: linked.rollout.revision, progress: false };
        self.model.revert = Some(Box::new(linked));
        Ok(client.rollouts().watch_rollout(request).await?.into_inner())
    }

    fn take(&mut self, change: &v1::WatchRolloutResponse) {
        let before = self.model.rollout.clone();
        self.model.apply(change);
        self.tell(change, &before);
    }

    fn take_revert(&mut self, change: &v1::WatchRolloutResponse) {
        let Some(revert) = &mut self.model.revert else { return };
        let before = revert.rollout.clone();
        revert.apply(change);
        self.tell(change, &before);
    }

    fn tell(&mut self, change: &v1::WatchRolloutResponse, before: &v1::Rollout) {
        use v1::watch_rollout_response::Change;
        let time = change.event_time.as_ref();
        match (self.app.globals.output, &change.change) {
            (Format::Jsonl, _) => print(&json(change, false)),
            (Format::Json, _) | (_, None) => {}
            _ if self.live => self.draw(),
            _ if self.app.globals.quiet => {}
            (_, Some(Change::Rollout(rollout))) => {
                render::rollout_line(rollout, before, time).iter().for_each(|line| print(line));
            }
            (_, Some(Change::Upgrade(upgrade))) => {
                let verbose = self.app.globals.verbose > 0 && change.revision > 0;
                let line = render::upgrade_line(upgrade, change.previous_state(), time, verbose);
                line.iter().for_each(|line| print(line));
            }
        }
    }

    fn draw(&mut self) {
        if !self.live {
            return;
        }
        let (columns, rows) = terminal_size();
        let mut tree = render::tree(&self.model, now(), columns, rows.saturating_sub(2), self.app.paint());
        if self.lost {
            tree.push_str("  the connection to the controller is lost; connecting again\n");
        }
        let mut out = io::stdout().lock();
        let text = format!("{}{}", self.erase(), tree);
        self.drawn = tree.lines().count();
        // A terminal that went away can't be told so.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }

    /// Goes back over the tree and clears it.
    fn erase(&self) -> String {
        if self.drawn == 0 { String::new() } else { format!("\x1b[{}A\r\x1b[J", self.drawn) }
    }

    /// Leaves the last tree on the terminal and gives the cursor back.
    fn leave(&mut self) {
        self.lost = false;
        self.draw();
        if self.live {
            let _ = write!(io::stdout(), "\x1b[?25h").and_then(|()| io::stdout().flush());
        }
    }
}

fn terminal_size() -> (usize, usize) {
    match rustix::termios::tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
        _ => (100, 40),
    }
}

#[cfg(test)]
mod tests;
