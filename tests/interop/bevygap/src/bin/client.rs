//! A client with bevygap's plugin: asks the matchmaker, connects, counts to COUNT, hears each echo, leaves.
//!
//! INTEROP_URL, INTEROP_GAME, INTEROP_VERSION say where to. Prints one word for each thing done; exits with 0 when it
//! has left after all echoes, with 1 where anything failed or SECONDS have passed.

use std::time::Instant;

use bevy::prelude::*;
use bevygap_client_plugin::prelude::*;
use interop_bevygap::{add_protocol, headless, shared_config, Count, Counting};
use lightyear::prelude::client::*;

const COUNT: u32 = 20;
const SECONDS: u64 = 60;

#[derive(Resource)]
struct Progress {
    began: Instant,
    heard: u32,
    left: bool,
}

fn main() {
    let transport = ClientTransport::WebTransportClient {
        client_addr: ([0, 0, 0, 0], 0).into(),
        server_addr: ([127, 0, 0, 1], 1).into(), // the plugin puts the matchmaker's answer here
    };
    let net = NetConfig::Netcode {
        auth: Authentication::None,
        config: NetcodeConfig::default(),
        io: IoConfig::from_transport(transport),
    };
    let mut app = headless();
    app.add_plugins(ClientPlugins::new(ClientConfig {
        shared: shared_config(),
        net,
        ..default()
    }));
    add_protocol(&mut app);
    app.insert_resource(BevygapClientConfig {
        matchmaker_url: variable("INTEROP_URL"),
        game_name: variable("INTEROP_GAME"),
        game_version: variable("INTEROP_VERSION"),
        fake_client_ip: None,
    });
    app.add_plugins(BevygapClientPlugin);
    app.insert_resource(Progress { began: Instant::now(), heard: 0, left: false });
    app.add_systems(Startup, |mut commands: Commands| commands.bevygap_connect_client());
    app.add_systems(Update, (matched, connected, counted, gone, too_late));
    let exit = app.run();
    std::process::exit(if exit.is_success() { 0 } else { 1 });
}

/// What the plugin makes of the matchmaker's answers.
fn matched(
    state: Res<State<BevygapClientState>>,
    mut said: Local<Option<BevygapClientState>>,
    mut exit: EventWriter<AppExit>,
) {
    if said.as_ref() == Some(state.get()) {
        return;
    }
    println!("matchmaking {:?}", state.get());
    if let BevygapClientState::Error(code, text) = state.get() {
        println!("failed: {code} {text}");
        exit.send(AppExit::error());
    }
    *said = Some(state.get().clone());
}

fn connected(mut events: EventReader<ConnectEvent>, mut connection: ResMut<ConnectionManager>) {
    for event in events.read() {
        println!("connected {}", event.client_id().to_bits());
        say(&mut connection, 1);
    }
}

/// One message after the other: each echo asks for the next.
fn counted(
    mut received: EventReader<MessageEvent<Count>>,
    mut connection: ResMut<ConnectionManager>,
    mut progress: ResMut<Progress>,
    mut commands: Commands,
    mut exit: EventWriter<AppExit>,
) {
    for event in received.read() {
        progress.heard += 1;
        if event.message != Count(progress.heard) {
            println!("failed: {:?} is not number {}", event.message, progress.heard);
            exit.send(AppExit::error());
        } else if progress.heard < COUNT {
            say(&mut connection, progress.heard + 1);
        } else {
            println!("heard {} of {COUNT}", progress.heard);
            progress.left = true;
            commands.disconnect_client();
        }
    }
}

fn gone(
    mut events: EventReader<DisconnectEvent>,
    progress: Res<Progress>,
    mut exit: EventWriter<AppExit>,
) {
    for event in events.read() {
        if progress.left {
            println!("left");
            exit.send(AppExit::Success);
        } else {
            println!("failed: disconnected, {:?}", event.reason);
            exit.send(AppExit::error());
        }
    }
}

fn too_late(progress: Res<Progress>, mut exit: EventWriter<AppExit>) {
    if progress.began.elapsed().as_secs() > SECONDS {
        println!("failed: not done after {SECONDS} s");
        exit.send(AppExit::error());
    }
}

fn say(connection: &mut ConnectionManager, number: u32) {
    connection
        .send_message::<Counting, Count>(&mut Count(number))
        .expect("a connected client can send");
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
}
