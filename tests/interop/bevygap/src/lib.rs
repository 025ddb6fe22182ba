//! What both programs share: the protocol and the shape of a headless Bevy app.

use std::time::Duration;

use bevy::app::ScheduleRunnerPlugin;
use bevy::log::LogPlugin;
use bevy::prelude::*;
use bevy::state::app::StatesPlugin;
use lightyear::prelude::*;

/// As in bevygap's own example game.
pub const PROTOCOL_ID: u64 = 80085;

/// The one message of the game: the client counts, the server echoes.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Count(pub u32);

/// Reliable and ordered.
#[derive(Channel)]
pub struct Counting;

/// An app without window, at 100 frames a second.
pub fn headless() -> App {
    let mut app = App::new();
    app.add_plugins(
        MinimalPlugins.set(ScheduleRunnerPlugin::run_loop(Duration::from_millis(10))),
    );
    app.add_plugins((HierarchyPlugin, StatesPlugin, LogPlugin::default()));
    app
}

/// Add the protocol, after lightyear's plugins.
pub fn add_protocol(app: &mut App) {
    app.register_message::<Count>(ChannelDirection::Bidirectional);
    app.add_channel::<Counting>(ChannelSettings {
        mode: ChannelMode::OrderedReliable(ReliableSettings::default()),
        ..default()
    });
}

/// The same on both sides.
pub fn shared_config() -> SharedConfig {
    SharedConfig {
        tick: TickConfig::new(Duration::from_millis(16)),
        ..default()
    }
}
