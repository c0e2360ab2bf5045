//! How long a tree takes to end: asked politely, and when its supervisor is killed.

use anyhow::Result;

use super::Bench;
use super::report::{Budget, Report, Row};
use super::sample::Sample;
use super::tree::{BARE_CALLS, Contender, Tree};

/// Processes below the command, with the rounds of each.
const SIZES: &[(usize, usize)] = &[(10, 21), (100, 11), (500, 7), (1000, 5)];
/// Those with `-g` tell the whole group; the others would leave everyone but the leader.
const PEERS: &[(&str, &[&str])] = &[
    ("dumb-init", &["dumb-init", "--"]),
    ("tini -s -g", &["tini", "-s", "-g", "--"]),
    ("catatonit -g", &["catatonit", "-g", "--"]),
];

/// Measures from TERM until everyone is dead and the contender has left.
pub(super) fn measure_stop(bench: &Bench, report: &mut Report) -> Result<()> {
    let mut contenders = contenders(bench, report, "stop");
    contenders.insert(1, Contender::bare_calls(bench));
    for (count, rounds) in SIZES {
        let mut samples: Vec<Sample> =
            contenders.iter().map(|contender| Sample::new(contender.name)).collect();
        for _ in 0..bench.rounds(*rounds) {
            for (contender, sample) in contenders.iter().zip(&mut samples) {
                sample.push_time(Tree::start(bench, contender, *count)?.stop()?);
            }
        }
        let what = format!("TERM to {count} processes, until proven empty");
        let budget = Budget::AtMostTimes(1.5, BARE_CALLS);
        report.add(Row { part: "stop", what, unit: "ms", samples, budget });
    }
    bench.expect_nothing_left()
}

/// Measures from SIGKILL of lariat until everyone is dead, beside a TERM to the bare group.
pub(super) fn measure_kill(bench: &Bench, report: &mut Report) -> Result<()> {
    let ours: Vec<Contender> =
        contenders(bench, report, "kill").into_iter().filter(Contender::is_ours).collect();
    for (count, rounds) in SIZES {
        let mut samples = vec![Sample::new("bare TERM")];
        samples.extend(ours.iter().map(|contender| Sample::new(contender.name)));
        samples.push(Sample::new("its keeper gone"));
        for _ in 0..bench.rounds(*rounds) {
            samples[0].push_time(Tree::start(bench, &Contender::bare(), *count)?.stop()?);
            for (index, contender) in ours.iter().enumerate() {
                let (all_dead, keeper_gone) = Tree::start(bench, contender, *count)?.kill_top()?;
                samples[index + 1].push_time(all_dead);
                if index + 1 == ours.len() {
                    samples[index + 2].push_time(keeper_gone);
                }
            }
        }
        let what = format!("SIGKILL of lariat, until {count} are dead");
        let budget = Budget::AtMostTimes(2.5, "bare TERM");
        report.add(Row { part: "kill", what, unit: "ms", samples, budget });
    }
    bench.expect_nothing_left()
}

/// Returns everyone who can be asked here. A lariat that cannot is reported.
fn contenders(bench: &Bench, report: &mut Report, part: &str) -> Vec<Contender> {
    let mut contenders = vec![Contender::bare()];
    contenders.extend(Contender::installed(PEERS));
    for ours in Contender::containments(bench) {
        match Tree::start(bench, &ours, 1).and_then(Tree::stop) {
            Ok(_) => contenders.push(ours),
            Err(error) => report.unavailable(part, ours.name, &error),
        }
    }
    contenders
}
