//! A game server with bevygap's plugin: it echoes. Port and key come from the environment, as the launcher sets it.

use bevy::prelude::*;
use bevygap_server_plugin::prelude::*;
use interop_bevygap::{add_protocol, headless, shared_config, Count, Counting, PROTOCOL_ID};
use lightyear::prelude::server::*;
use lightyear::prelude::*;

fn main() {
    let certificate = Identity::self_signed(["localhost", "127.0.0.1"]).expect("valid names");
    let transport = ServerTransport::WebTransportServer {
        server_addr: ([0, 0, 0, 0], port()).into(),
        certificate,
    };
    let net = NetConfig::Netcode {
        config: NetcodeConfig::default()
            .with_protocol_id(PROTOCOL_ID)
            .with_key(key()),
        io: IoConfig::from_transport(transport),
    };
    let mut app = headless();
    app.add_plugins(ServerPlugins::new(ServerConfig {
        shared: shared_config(),
        net: vec![net],
        ..default()
    }));
    add_protocol(&mut app);
    app.add_plugins(BevygapServerPlugin);
    app.observe(|_: Trigger<BevygapReady>, mut commands: Commands| commands.start_server());
    app.add_systems(Update, echo);
    app.run();
}

fn echo(mut received: EventReader<MessageEvent<Count>>, mut connections: ResMut<ConnectionManager>) {
    for event in received.read() {
        let mut answer = event.message.clone();
        if let Err(error) = connections.send_message::<Counting, Count>(event.context, &mut answer) {
            error!("no echo to {}: {error}", event.context);
        }
    }
}

/// The port named `webtransport` in ARBITRIUM_PORTS_MAPPING: servers on one host cannot all listen on the same.
fn port() -> u16 {
    let text = std::env::var("ARBITRIUM_PORTS_MAPPING").expect("ARBITRIUM_PORTS_MAPPING");
    let mapping: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let internal = &mapping["ports"]["webtransport"]["internal"];
    internal.as_u64().and_then(|port| port.try_into().ok()).expect("a port named webtransport")
}

/// `1,2,3,...` in LIGHTYEAR_PRIVATE_KEY.
fn key() -> Key {
    let text = std::env::var("LIGHTYEAR_PRIVATE_KEY").expect("LIGHTYEAR_PRIVATE_KEY");
    let numbers: Vec<u8> = text.split(',').map(|one| one.trim().parse().expect("a byte")).collect();
    numbers.try_into().expect("32 numbers")
}
