//! `lariat port` from outside: who listens, in every kind of socket; what `--free` ends, and what it never touches.

use std::net::{TcpStream, UdpSocket};

use lariat_testkit::census::Seen;
use lariat_testkit::{
    Arena, Ending, Facts, PATIENCE, Pty, Running, Stack, fixture, is_root, needs, net, subject, wait_until,
};

const LARIAT: &str = env!("CARGO_BIN_EXE_lariat");

fn lariat(arena: &Arena, args: &[&str]) -> Ending {
    arena.command(subject::lariat(LARIAT)).args(args).own_session().run()
}

fn port(arena: &Arena, port: u16, more: &[&str]) -> Ending {
    lariat(arena, &[&["port", &port.to_string()], more].concat())
}

/// Starts a fixture that listens, which no run of lariat has anything to do with.
fn listener(arena: &Arena, facts: &Facts, port: u16, args: &[&str]) -> Running {
    let port = port.to_string();
    let all = [&["listener", "--port", &port], args].concat();
    let running = arena.command(fixture::path()).args(all).facts(facts).own_session().start();
    facts.wait_for("ready");
    running
}

fn end(arena: Arena, running: &[&Running]) {
    running.iter().for_each(|running| running.signal(libc::SIGKILL));
    arena.alive().iter().for_each(Seen::kill);
    arena.wait_until_empty(PATIENCE);
    arena.finish();
}

/// Returns the lines of the table that are about a port.
fn rows(ending: &Ending) -> Vec<Vec<String>> {
    let lines = ending.out();
    let rows =
        lines.lines().skip(1).take_while(|line| !line.starts_with("run ") && !line.starts_with("nobody"));
    rows.map(|row| row.split_whitespace().map(str::to_owned).collect()).collect()
}

fn has_v6() -> bool {
    let has = std::net::TcpListener::bind("[::1]:0").is_ok();
    if !has {
        needs::skip("no IPv6 on this machine");
    }
    has
}

#[test]
fn a_free_port_is_said_to_be_free() {
    let mut arena = Arena::new();
    let (one, two) = (arena.port(), arena.port());
    let ending = port(&arena, one, &[]).expect(0);
    assert_eq!(ending.out(), format!("nobody listens on port {one}\n"));
    assert_eq!(ending.err(), "");
    let both =
        lariat(&arena, &["port", &one.to_string(), &two.to_string(), &one.to_string(), "--free"]).expect(0);
    assert_eq!(both.out().lines().count(), 2, "{both:?}");
    let json = lariat(&arena, &["port", &one.to_string(), "--json"]).expect(0);
    assert!(json.out().contains("\"is_free\": true") && json.out().contains("\"holders\": []"), "{json:?}");
    arena.finish();
}

#[test]
fn every_kind_of_listener_is_shown_once_with_its_process() {
    for (proto, at) in [
        ("tcp", "127.0.0.1"),
        ("tcp", "0.0.0.0"),
        ("tcp", "::1"),
        ("tcp", "::"),
        ("udp", "127.0.0.1"),
        ("udp", "0.0.0.0"),
        ("udp", "::1"),
        ("udp", "::"),
    ] {
        if at.contains(':') && !has_v6() {
            continue;
        }
        let mut arena = Arena::new();
        let number = arena.port();
        let facts = arena.facts("f");
        let running = listener(&arena, &facts, number, &["--proto", proto, "--at", at]);
        let shown = port(&arena, number, &[]).expect(7);
        let rows = rows(&shown);
        let [row] = &rows[..] else { panic!("{proto} {at}: {shown:?}") };
        let place = if at.contains(':') { format!("[{at}]:{number}") } else { format!("{at}:{number}") };
        let user = if is_root() { "root" } else { row[4].as_str() };
        let expected = [&number.to_string(), proto, &place, &running.pid().to_string(), user];
        assert_eq!(row[..5], expected, "{shown:?}");
        assert!(
            row.last().is_some_and(|word| !word.is_empty()) && shown.out().contains("misbehave"),
            "{shown:?}"
        );
        end(arena, &[&running]);
    }
}

#[test]
fn connections_are_not_shown() {
    let mut arena = Arena::new();
    let number = arena.port();
    let facts = arena.facts("f");
    let running = listener(&arena, &facts, number, &[]);
    let client = TcpStream::connect(("127.0.0.1", number)).expect("it listens");
    let shown = port(&arena, number, &[]).expect(7);
    assert_eq!(rows(&shown).len(), 1, "{shown:?}");
    // The other end of the same connection listens to nobody; neither does a socket that talks to one peer.
    let own = client.local_addr().expect("it is connected").port();
    port(&arena, own, &[]).expect(0);
    let datagrams = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    datagrams.connect(("127.0.0.1", number)).expect("an address");
    port(&arena, datagrams.local_addr().expect("it is bound").port(), &[]).expect(0);
    end(arena, &[&running]);
}

#[test]
fn those_who_share_a_socket_are_one_entry_and_a_group_is_one_each() {
    let mut arena = Arena::new();
    let number = arena.port();
    let facts = arena.facts("f");
    let running = listener(&arena, &facts, number, &["--sharers", "3"]);
    let shown = port(&arena, number, &["--json"]).expect(7);
    let out = shown.out();
    assert_eq!(out.matches("\"address\"").count(), 1, "{out}");
    assert_eq!(out.matches("\"pid\"").count(), 4, "{out}");
    let table = port(&arena, number, &[]).expect(7);
    let oldest = table.out().lines().nth(1).is_some_and(|row| row.contains(&format!(" {} ", running.pid())));
    assert!(oldest, "the oldest is not first: {table:?}");
    for pid in facts.pids("sharer") {
        assert!(table.out().contains(&pid.to_string()), "{pid} is not named: {table:?}");
    }
    end(arena, &[&running]);

    let mut arena = Arena::new();
    let number = arena.port();
    let facts = arena.facts("group");
    let running = listener(&arena, &facts, number, &["--group", "2"]);
    let out = port(&arena, number, &["--json"]).expect(7).out();
    assert_eq!(out.matches("\"address\"").count(), 2, "{out}");
    assert_eq!(out.matches("\"pid\"").count(), 2, "{out}");
    end(arena, &[&running]);
}

#[test]
fn a_foreign_holder_survives_and_the_command_to_end_it_is_shown() {
    let mut arena = Arena::new();
    let (number, other) = (arena.port(), arena.port());
    let facts = arena.facts("f");
    let running = listener(&arena, &facts, number, &["--manner", "graceful", "--sharers", "1"]);
    for args in [&["--free"][..], &["--free", "--yes"], &["--free", "--yes", "--json"]] {
        let refused = port(&arena, number, args).expect(7);
        let said = refused.err();
        let (first, second) = (running.pid(), facts.pid("sharer"));
        assert!(said.contains(&format!("by hand: kill {first} {second}\n")), "{refused:?}");
    }
    // A free port beside it changes nothing.
    let both =
        lariat(&arena, &["port", &number.to_string(), &other.to_string(), "--free", "--yes"]).expect(7);
    assert!(both.out().contains(&format!("nobody listens on port {other}")), "{both:?}");
    assert!(running.is_alive() && arena.alive().len() == 2, "a stranger was touched: {:?}", arena.alive());
    ["leader", "sharer"].into_iter().for_each(|role| facts.assert_told(role, &[], "a stranger"));
    end(arena, &[&running]);
}

#[test]
fn another_users_process_is_named_and_left_alone() {
    if !is_root() {
        return needs::skip_as_user("another user's process needs root");
    }
    let mut arena = Arena::new();
    let number = arena.port();
    let facts = arena.facts("f");
    // The mark alone is anybody's to set.
    let command =
        arena.command(fixture::path()).args(["listener", "--port", &number.to_string()]).facts(&facts);
    let marked =
        command.env("LARIAT_RUN", "0123456789abcdef").env("LARIAT_SERVICE", "web").as_user(65534, 65534);
    let running = marked.own_session().start();
    facts.wait_for("ready");
    let refused = port(&arena, number, &["--free", "--yes"]).expect(7);
    assert!(refused.err().contains("another user's"), "{refused:?}");
    assert!(
        refused.err().contains(&format!("by hand: kill {}\n", running.pid())),
        "root needs no sudo: {refused:?}"
    );
    assert!(refused.out().contains("nobody") && refused.out().contains("web"), "{refused:?}");
    // From the other side: that user may not look into ours.
    let own_facts = arena.facts("own");
    let own = arena.port();
    let ours = listener(&arena, &own_facts, own, &[]);
    let ask = |more: &[&str]| {
        let own = own.to_string();
        let args = [&["port", &own], more].concat();
        arena.command(subject::lariat(LARIAT)).args(args).as_user(65534, 65534).own_session().run()
    };
    let shown = ask(&[]).expect(7);
    assert!(shown.out().contains("root") && shown.out().contains("may not be looked into"), "{shown:?}");
    assert!(!shown.out().contains(&ours.pid().to_string()), "{shown:?}");
    let refused = ask(&["--free", "--yes"]).expect(7);
    assert!(refused.err().contains(&format!("sudo lariat port {own}")), "{refused:?}");
    assert!(running.is_alive() && ours.is_alive());
    end(arena, &[&running, &ours]);
}

/// A stack of one service that listens on its port, below a shell that does not.
fn stack(arena: &mut Arena, manner: &str, more: &str) -> (Stack, Facts, u16) {
    let number = arena.port();
    let facts = arena.facts("stack");
    let line = fixture::line("listener", &facts, &format!("--port {number} --manner {manner} --sharers 1"));
    let run = line.trim_start_matches("exec ");
    let toml = format!("[service.web]\nrun = '{run}; true'\nport = {number}\n{more}\n");
    (Stack::new(arena, LARIAT, "project", &toml), facts, number)
}

/// Kills the supervisor and all keepers in one go; those who ignore the polite signals are left.
fn crash(arena: &Arena, stack: &Stack, up: &Running) {
    let keepers = stack.keepers(arena);
    assert!(!keepers.is_empty());
    let own = up.seen().expect("it is alive");
    keepers.iter().chain([&own]).for_each(|seen| seen.signal(libc::SIGSTOP));
    keepers.iter().for_each(Seen::kill);
    up.signal(libc::SIGKILL);
    up.wait();
    wait_until("the keepers' end", PATIENCE, || stack.keepers(arena).is_empty().then_some(()));
}

#[test]
fn a_live_runs_service_is_named_and_left_to_its_supervisor() {
    let mut arena = Arena::new();
    let (stack, facts, number) = stack(&mut arena, "graceful", "restart = 'always'");
    let up = stack.up(&arena);
    facts.wait_for("ready");
    let shown = port(&arena, number, &[]).expect(7);
    let root = stack.dir().canonicalize().expect("it is there").display().to_string();
    for word in
        ["web", "is alive", root.as_str(), &facts.pid("leader").to_string(), &facts.pid("sharer").to_string()]
    {
        assert!(shown.out().contains(word), "no {word}: {shown:?}");
    }
    let json = port(&arena, number, &["--json"]).expect(7).out();
    for word in ["\"service\": \"web\"", "\"is_run_alive\": true", &format!("\"root\": \"{root}\"")] {
        assert!(json.contains(word), "no {word}: {json}");
    }
    let refused = port(&arena, number, &["--free", "--yes"]).expect(5);
    for word in ["service `web`", "`lariat stop web`", "`lariat down`", root.as_str()] {
        assert!(refused.err().contains(word), "no {word}: {refused:?}");
    }
    ["leader", "sharer"].into_iter().for_each(|role| facts.assert_told(role, &[], "of a live run"));
    stack.run(&arena, &["stop", "web"]).expect(0);
    port(&arena, number, &[]).expect(0);
    stack.run(&arena, &["down"]).expect(0);
    up.wait().expect(0);
    arena.finish();
}

#[test]
fn what_a_crashed_run_left_is_ended_after_a_yes_and_the_port_is_free() {
    let mut arena = Arena::new();
    // The leader gets its stop signal from the kernel at the crash; it is the shell.
    let (stack, facts, number) = stack(&mut arena, "graceful", "stop = { signal = 'INT', grace = '10s' }");
    let up = stack.up(&arena);
    facts.wait_for("ready");
    let (leader, sharer) = (facts.pid("leader"), facts.pid("sharer"));
    crash(&arena, &stack, &up);
    assert!(!net::is_free(number), "nothing was left: {:?}", arena.alive());
    let shown = port(&arena, number, &[]).expect(7);
    assert!(shown.out().contains("is over") && shown.out().contains("web"), "{shown:?}");
    // Nobody to ask, and nobody said yes: everything is shown, nothing touched.
    let refused = port(&arena, number, &["--free"]).expect(8);
    let said = refused.out() + &refused.err();
    assert!([leader, sharer].iter().all(|pid| said.contains(&pid.to_string())), "{said}");
    assert!(said.contains("--yes"), "{said}");
    facts.assert_told("leader", &[], "before anybody said yes");
    let freed = port(&arena, number, &["--free", "--yes"]).expect(0);
    assert!(freed.out().contains(&format!("port {number} is free")), "{freed:?}");
    arena.wait_until_empty(PATIENCE);
    // By the stop signal of the ledger, once, and with time to finish.
    assert!(facts.has("clean-leader") && facts.has("clean-sharer"), "it was not allowed to finish");
    for role in ["leader", "sharer"] {
        facts.assert_told(role, &[1], "by `port --free`");
        assert!(
            facts.heard(role).values().all(|heard| heard[0].signal == 2),
            "{}",
            facts.told_in_words(role)
        );
    }
    // The run's own books are still open, and are closed as after every crash.
    stack.run(&arena, &["down", "--yes"]).expect(0);
    arena.finish();
}

#[test]
fn one_who_ignores_the_stop_signal_is_killed_at_the_end_of_its_grace_period() {
    let mut arena = Arena::new();
    let (stack, facts, number) = stack(&mut arena, "stubborn", "stop = { grace = '300ms' }");
    let up = stack.up(&arena);
    facts.wait_for("ready");
    crash(&arena, &stack, &up);
    let freed = port(&arena, number, &["--free", "--yes", "--json"]).expect(0);
    let out = freed.out();
    assert!(out.contains("\"is_free\": true") && out.contains("\"services\": [\n        \"web\""), "{out}");
    assert!(!out.contains("\"killed\": 0"), "{out}");
    arena.wait_until_empty(PATIENCE);
    stack.run(&arena, &["down", "--yes"]).expect(0);
    arena.finish();
}

#[test]
fn a_terminal_is_asked() {
    for (answer, code) in [("y\n", 0), ("\n", 0), ("n\n", 8)] {
        let mut arena = Arena::new();
        let (stack, facts, number) = stack(&mut arena, "plain", "stop = { grace = '300ms' }");
        let up = stack.up(&arena);
        facts.wait_for("ready");
        crash(&arena, &stack, &up);
        let mut pty = Pty::new();
        let running = pty.start(stack.in_front(&arena, &["port", &number.to_string(), "--free"]));
        pty.wait_for("?");
        pty.send(answer);
        pty.wait_end(&running).expect(code);
        assert_eq!(net::is_free(number), code == 0, "{answer:?}");
        end(arena, &[]);
    }
}

#[test]
fn the_mark_alone_is_enough_and_a_stranger_beside_it_is_spared() {
    let mut arena = Arena::new();
    let (ours, theirs) = (arena.port(), arena.port());
    let (own, other) = (arena.facts("own"), arena.facts("other"));
    let marked = arena.command(fixture::path()).args(["listener", "--port", &ours.to_string()]).facts(&own);
    let marked = marked.env("LARIAT_RUN", "0123456789abcdef").own_session().start();
    own.wait_for("ready");
    let stranger = listener(&arena, &other, theirs, &[]);
    let freed =
        lariat(&arena, &["port", &ours.to_string(), &theirs.to_string(), "--free", "--yes"]).expect(7);
    assert!(freed.out().contains(&format!("port {ours} is free")), "{freed:?}");
    assert!(freed.out().contains(&format!("port {theirs} is held by {}", stranger.pid())), "{freed:?}");
    marked.wait();
    assert!(stranger.is_alive());
    end(arena, &[&stranger]);
}

#[test]
fn a_command_under_lariat_run_is_left_to_it() {
    let mut arena = Arena::new();
    let number = arena.port();
    let facts = arena.facts("f");
    let args = ["run", "--", fixture::path(), "listener", "--port", &number.to_string()];
    let running = arena.command(subject::lariat(LARIAT)).args(args).facts(&facts).own_session().start();
    facts.wait_for("ready");
    let refused = port(&arena, number, &["--free", "--yes"]).expect(5);
    assert!(refused.err().contains(&format!("kill {}\n", running.pid())), "{refused:?}");
    assert!(running.is_alive());
    running.signal(libc::SIGTERM);
    running.wait();
    port(&arena, number, &[]).expect(0);
    arena.finish();
}

#[test]
fn a_supervisor_that_is_named_or_a_keeper_above_is_enough_to_be_left_alone() {
    for is_named in [true, false] {
        // Neither the list of runs nor a record says where this run is.
        let mut arena = Arena::new();
        let (stack, facts, number) = stack(&mut arena, "graceful", "");
        if !is_named {
            let file = stack.dir().join("lariat.toml");
            let toml = std::fs::read_to_string(&file).expect("it is ours");
            let toml = toml.replacen("run = '", "run = 'unset LARIAT_SUPERVISOR; ", 1);
            std::fs::write(file, toml).expect("it is ours");
        }
        let elsewhere = arena.dir().join("elsewhere");
        let up = stack.lariat(&arena, &["up", "--yes"]).env("XDG_STATE_HOME", elsewhere).start();
        stack.wait_up(&up, 0);
        facts.wait_for("ready");
        let refused = port(&arena, number, &["--free", "--yes"]).expect(5);
        let named = if is_named { format!("supervisor is process {}", up.pid()) } else { "keeper".into() };
        assert!(refused.err().contains(&named), "{refused:?}");
        facts.assert_told("leader", &[], "it is not ours to end");
        stack.run(&arena, &["down"]).expect(0);
        up.wait().expect(0);
        arena.finish();
    }
}

#[test]
fn a_datagram_socket_is_in_no_servers_way() {
    let mut arena = Arena::new();
    let (stack, facts, number) = stack(&mut arena, "plain", "");
    let other = arena.facts("udp");
    let running = listener(&arena, &other, number, &["--proto", "udp"]);
    let up = stack.up(&arena);
    facts.wait_for("ready");
    let down = stack.run(&arena, &["down"]).expect(0);
    assert!(down.out().contains("ports are free"), "{down:?}");
    up.wait().expect(0);
    end(arena, &[&running]);
}

#[test]
fn listeners_of_either_family_are_in_a_servers_way() {
    for at in ["127.0.0.1", "0.0.0.0", "::1", "::"] {
        if at.contains(':') && !has_v6() {
            continue;
        }
        let mut arena = Arena::new();
        let (stack, facts, number) = stack(&mut arena, "plain", "");
        let other = arena.facts("other");
        let running = listener(&arena, &other, number, &["--at", at]);
        let refused = stack.run(&arena, &["up", "--yes"]).expect(7);
        assert!(refused.err().contains(&running.pid().to_string()), "{at}: {refused:?}");
        assert!(facts.names().is_empty());
        end(arena, &[&running]);
    }
}

#[test]
fn bad_ports_are_usage_errors() {
    let arena = Arena::new();
    for args in
        [&["port"][..], &["port", "0"], &["port", "65536"], &["port", "http"], &["port", "80", "--yes"]]
    {
        let ending = lariat(&arena, args).expect(2);
        assert!(ending.out().is_empty() && !ending.err().is_empty(), "{args:?}: {ending:?}");
    }
    arena.finish();
}

#[test]
fn a_reader_that_goes_away_changes_nothing() {
    let mut arena = Arena::new();
    let number = arena.port();
    let facts = arena.facts("f");
    let running = listener(&arena, &facts, number, &["--sharers", "40"]);
    let program = subject::lariat(LARIAT);
    let line = format!("'{}' port {number} | head -n 1", program.to_string_lossy());
    let ending = arena.command("/bin/sh").args(["-c", &line]).run().expect(0);
    assert!(ending.out().starts_with("port") && ending.err().is_empty(), "{ending:?}");
    end(arena, &[&running]);
}
