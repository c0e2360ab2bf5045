//! The wire: what is written is read back the same, and no bytes at all make a reader panic.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::ffi::CString;
use std::time::Duration;

use lariat_keeper::contain::limits::OutOfMemory;
use lariat_keeper::stop::{StopPlan, StopScope};
use lariat_keeper::wire::{End, Named, Notice, Order, PACKET_MAX, Plan};
use lariat_sys::identity::Identity;
use lariat_sys::procfs::Comm;
use lariat_sys::reap::{Exit, Usage};
use lariat_sys::signal::{Signal, SignalSet};
use lariat_sys::spawn::SpawnStep;
use proptest::prelude::*;

fn identity() -> impl Strategy<Value = Identity> {
    (any::<i32>(), any::<u64>(), any::<Option<u64>>())
        .prop_map(|(pid, start, inode)| Identity::new(pid, start).with_inode(inode))
}

fn signal() -> impl Strategy<Value = Signal> {
    (1..=64).prop_filter_map("a signal", Signal::from_number)
}

fn duration() -> impl Strategy<Value = Duration> {
    any::<u64>().prop_map(Duration::from_nanos)
}

fn exit() -> impl Strategy<Value = Exit> {
    prop_oneof![
        any::<u8>().prop_map(Exit::Code),
        (signal(), any::<bool>()).prop_map(|(signal, core)| Exit::Signal { signal, core }),
    ]
}

fn named() -> impl Strategy<Value = Named> {
    (identity(), any::<[u8; 16]>(), any::<i32>()).prop_map(|(identity, comm, errno)| Named {
        identity,
        comm: Comm::new(&comm),
        errno,
    })
}

fn end() -> impl Strategy<Value = End> {
    let usage = (duration(), duration(), any::<u64>()).prop_map(|(user, system, max_rss_kib)| Usage {
        user,
        system,
        max_rss_kib,
    });
    let memory = prop::sample::select(vec![None, Some(OutOfMemory::OwnLimit), Some(OutOfMemory::Around)]);
    (proptest::option::of(exit()), usage, any::<[u32; 4]>(), duration(), any::<u64>(), memory).prop_map(
        |(exit, usage, [told, killed, stragglers, left], stop_time, dropped_bytes, out_of_memory)| End {
            exit,
            usage,
            told,
            killed,
            stragglers,
            left,
            stop_time,
            dropped_bytes,
            out_of_memory,
        },
    )
}

fn notice() -> impl Strategy<Value = Notice> {
    prop_oneof![
        identity().prop_map(|leader| Notice::Started { leader }),
        ((1..=11).prop_filter_map("a step", SpawnStep::from_number), any::<i32>())
            .prop_map(|(step, errno)| Notice::SpawnFailed { step, errno }),
        signal().prop_map(|signal| Notice::LeaderStopped { signal }),
        Just(Notice::LeaderContinued),
        exit().prop_map(|exit| Notice::LeaderExited { exit }),
        any::<u32>().prop_map(|members| Notice::Daemonized { members }),
        any::<u32>().prop_map(|alive| Notice::Stragglers { alive }),
        named().prop_map(|named| Notice::Straggler { named }),
        named().prop_map(|named| Notice::Left { named }),
        Just(Notice::ForksRefused),
        Just(Notice::Unlimited),
        end().prop_map(Notice::Ended),
    ]
}

fn order() -> impl Strategy<Value = Order> {
    prop_oneof![
        duration().prop_map(|grace| Order::Stop { grace }),
        Just(Order::Kill),
        signal().prop_map(Order::Signal),
    ]
}

fn text() -> impl Strategy<Value = CString> {
    prop::collection::vec(1_u8.., 0..40).prop_map(|bytes| CString::new(bytes).unwrap())
}

fn plan() -> impl Strategy<Value = Plan> {
    let scope =
        prop::sample::select(vec![StopScope::Staged, StopScope::Leader, StopScope::Group, StopScope::All]);
    let stop =
        (signal(), scope, duration()).prop_map(|(signal, scope, grace)| StopPlan { signal, scope, grace });
    let texts = (".*", ".*", prop::collection::vec(text(), 1..5), prop::collection::vec(text(), 0..9));
    let sets = (any::<u64>(), any::<u64>());
    (texts, proptest::option::of(text()), any::<[bool; 4]>(), stop, sets).prop_map(
        |((label, run, argv, env), dir, flags, stop, (mask, ignored))| Plan {
            label,
            run,
            record: dir.clone(),
            argv,
            env,
            dir,
            has_session: flags[0],
            is_daemon: flags[1],
            has_null_stdin: flags[2],
            is_limited: flags[3],
            stop,
            mask: SignalSet::from_bits(mask),
            ignored: SignalSet::from_bits(ignored),
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn notices_are_read_as_they_were_written(notice in notice()) {
        let packet = notice.encode();
        prop_assert!(packet.len() <= PACKET_MAX);
        prop_assert_eq!(Notice::decode(&packet), Ok(notice));
    }

    #[test]
    fn orders_are_read_as_they_were_written(order in order()) {
        prop_assert_eq!(Order::decode(&order.encode()), Ok(order));
    }

    #[test]
    fn plans_are_read_as_they_were_written(plan in plan()) {
        prop_assert_eq!(Plan::decode(&plan.encode()), Ok(plan));
    }

    /// Random bytes hardly ever get past the first field, so most of these are good messages with a few bytes changed,
    /// cut or added. What is read all the same is a message: it is written and read back as itself.
    #[test]
    fn any_bytes_are_a_message_or_an_error(
        good in prop_oneof![
            notice().prop_map(|n| n.encode()), order().prop_map(|o| o.encode()), plan().prop_map(|p| p.encode()),
            prop::collection::vec(any::<u8>(), 0..200),
        ],
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in proptest::option::of(any::<prop::sample::Index>()),
        tail in prop::collection::vec(any::<u8>(), 0..3),
    ) {
        let mut bytes = good;
        for (at, byte) in changes {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len() + 1));
        }
        bytes.extend(tail);
        if let Ok(notice) = Notice::decode(&bytes) {
            prop_assert_eq!(Notice::decode(&notice.encode()), Ok(notice));
        }
        if let Ok(order) = Order::decode(&bytes) {
            prop_assert_eq!(Order::decode(&order.encode()), Ok(order));
        }
        if let Ok(plan) = Plan::decode(&bytes) {
            prop_assert!(!plan.argv.is_empty());
            prop_assert_eq!(Plan::decode(&plan.encode()), Ok(plan));
        }
    }
}

/// A count that promises four thousand million texts must not be believed before they are there.
#[test]
fn a_large_count_does_not_allocate() {
    let mut bytes = Vec::new();
    bytes.extend([0; 8]); // label and run, both empty
    bytes.extend([0; 12]); // supervisor
    bytes.extend(u32::MAX.to_le_bytes());
    assert!(Plan::decode(&bytes).is_err());
}
