use super::*;
use crate::logs::Store;
use lariat_keeper::store::Output;
use lariat_sys::poll::{PollFd, PollFlags, poll};
use std::fs::File;
use std::io::Write;
use std::path::Path;

const PATIENCE: Duration = Duration::from_secs(30);

fn wait_until(bell: &Bell, what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        bell.clear();
        if is_so() {
            return;
        }
        assert_ne!(
            poll(&mut [PollFd::new(bell, PollFlags::IN)], Some(deadline)),
            Ok(0),
            "waited in vain until {what}"
        );
    }
}

fn add(pump: &Pump, dir: &Path, name: &str) -> (Arc<Flow>, File, Store) {
    let store = Store::create(dir, name).unwrap();
    let output = Output::new().unwrap();
    let flow = pump.add(store.drain(output.read, output.stage).unwrap());
    (flow, File::from(output.write), store)
}

#[test]
fn bytes_arrive_and_the_bell_rings() {
    let dir = tempfile::tempdir().unwrap();
    let pump = Pump::start().unwrap();
    let bell = pump.bell().unwrap();
    let (flow, mut writer, store) = add(&pump, dir.path(), "web");
    for (text, end) in [("hello\n", 6), ("again\n", 12), ("and again\n", 22)] {
        writer.write_all(text.as_bytes()).unwrap();
        wait_until(&bell, "the line arrives", || flow.end() == end);
    }
    drop(writer);
    wait_until(&bell, "the pipe is closed", || flow.is_done());
    assert_eq!((flow.state(), flow.moved(), flow.dropped()), (FlowState::Closed, 22, 0));
    assert_eq!(std::fs::read(store.files().log()).unwrap(), b"hello\nagain\nand again\n");
}

#[test]
fn a_restarted_service_goes_on_in_the_same_store() {
    let dir = tempfile::tempdir().unwrap();
    let pump = Pump::start().unwrap();
    let bell = pump.bell().unwrap();
    let (first, mut writer, store) = add(&pump, dir.path(), "web");
    writer.write_all(b"first ").unwrap();
    drop(writer);
    wait_until(&bell, "the first pipe is closed", || first.is_done());
    let Output { read, write, stage } = Output::new().unwrap();
    let second = pump.add(store.drain(read, stage).unwrap());
    File::from(write).write_all(b"second").unwrap();
    wait_until(&bell, "the second pipe is closed", || second.is_done());
    assert_eq!((second.moved(), second.end()), (6, 12));
    assert_eq!(std::fs::read(store.files().log()).unwrap(), b"first second");
}

#[test]
fn finishing_takes_what_is_there_and_waits_for_no_writer() {
    let dir = tempfile::tempdir().unwrap();
    let pump = Pump::start().unwrap();
    let bell = pump.bell().unwrap();
    let (flow, mut held_open, _store) = add(&pump, dir.path(), "web");
    held_open.write_all(b"last words").unwrap();
    pump.finish(&flow, Instant::now() + PATIENCE);
    wait_until(&bell, "the pipe is finished", || flow.is_done());
    assert_eq!((flow.state(), flow.moved()), (FlowState::Finished, 10));
    let error = held_open.write_all(b"too late").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    pump.finish(&flow, Instant::now());
}

#[test]
fn a_writer_that_never_pauses_cannot_hold_up_finishing() {
    let dir = tempfile::tempdir().unwrap();
    let pump = Pump::start().unwrap();
    let bell = pump.bell().unwrap();
    let (flow, mut writer, _store) = add(&pump, dir.path(), "web");
    let flood = std::thread::spawn(move || while writer.write_all(&[b'x'; 5_000]).is_ok() {});
    wait_until(&bell, "the flood is there", || flow.moved() > 3_000_000);
    pump.finish(&flow, Instant::now() + PATIENCE);
    wait_until(&bell, "the pipe is finished", || flow.is_done());
    flood.join().unwrap();
    assert_eq!(flow.state(), FlowState::Finished);
}

#[test]
fn many_services_at_once_keep_their_bytes_apart() {
    let dir = tempfile::tempdir().unwrap();
    let pump = Pump::start().unwrap();
    let bell = pump.bell().unwrap();
    let services: Vec<_> = (0..40).map(|n| add(&pump, dir.path(), &format!("s{n}"))).collect();
    let mut flows = Vec::new();
    let writers: Vec<_> = services
        .into_iter()
        .enumerate()
        .map(|(n, (flow, mut writer, store))| {
            flows.push((n, flow, store));
            std::thread::spawn(move || {
                for line in 0..200 * (n % 4 + 1) {
                    writeln!(writer, "{n} {line}").unwrap();
                }
            })
        })
        .collect();
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    wait_until(&bell, "all pipes are closed", || flows.iter().all(|(_, flow, _)| flow.is_done()));
    for (n, _, store) in &flows {
        let expected: String = (0..200 * (n % 4 + 1)).map(|line| format!("{n} {line}\n")).collect();
        assert_eq!(std::fs::read_to_string(store.files().log()).unwrap(), expected);
    }
}

#[test]
fn a_bell_that_is_not_wanted_is_silent() {
    let dir = tempfile::tempdir().unwrap();
    let pump = Pump::start().unwrap();
    let (loud, quiet) = (pump.bell().unwrap(), pump.bell().unwrap());
    quiet.set_wanted(false);
    let (flow, mut writer, _store) = add(&pump, dir.path(), "web");
    writer.write_all(b"x").unwrap();
    wait_until(&loud, "the byte arrives", || flow.end() == 1);
    assert_eq!(poll(&mut [PollFd::new(&quiet, PollFlags::IN)], Some(Instant::now())), Ok(0));
}

#[test]
fn a_full_disk_blocks_nobody_and_is_counted() {
    let pump = Pump::start().unwrap();
    let bell = pump.bell().unwrap();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let Output { read, write, stage } = Output::new().unwrap();
    let flow = pump.add(Drain::new(read, stage, full.into(), None).unwrap());
    let mut writer = File::from(write);
    for _ in 0..100 {
        writer.write_all(&[b'x'; 10_000]).unwrap();
    }
    drop(writer);
    wait_until(&bell, "the pipe is closed", || flow.is_done());
    assert_eq!((flow.moved(), flow.dropped()), (0, 1_000_000));
}

#[test]
fn pauses_adapt_to_the_writer() {
    let mut pause = PAUSE_MAX;
    for _ in 0..10 {
        pause = next_pause(pause, PIPE_BYTES_GROWN / 8);
    }
    assert_eq!(pause, PAUSE_MIN);
    for _ in 0..10 {
        pause = next_pause(pause, 100);
    }
    assert_eq!(pause, PAUSE_MAX);
    assert_eq!(next_pause(pause, PIPE_BYTES_GROWN / 4), Duration::ZERO);
}
