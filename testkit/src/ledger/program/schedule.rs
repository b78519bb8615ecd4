//! The schedule of a round's nemeses, which depends only on the seed.

use std::time::Duration;

use super::super::nemesis::Nemesis;

/// A nemesis at its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Strike {
    pub(super) nemesis: Nemesis,
    /// Time since the beginning of the round.
    pub(super) at: Duration,
    /// Time from its begin to its end.
    pub(super) lasts: Duration,
    /// A number that the nemesis may use, from 1 to 8.
    pub(super) number: u32,
}

/// Draws the nemeses of one lane: one worker, or the backend. They follow each other; those of different lanes overlap.
pub(super) fn schedule(
    seed: u64,
    lane: usize,
    nemeses: &[Nemesis],
    length: Duration,
    lease: Duration,
) -> Vec<Strike> {
    // Neighbouring seeds of a plain generator begin alike.
    let mixed = fastrand::Rng::with_seed(seed).u64(..) ^ (lane as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut rng = fastrand::Rng::with_seed(mixed);
    let mut strikes = Vec::new();
    if nemeses.is_empty() {
        return strikes;
    }
    let mut at = between(&mut rng, 300, 1_500);
    while at < length {
        let nemesis = nemeses[rng.usize(..nemeses.len())];
        let lasts = lasts(nemesis, lease, &mut rng);
        strikes.push(Strike { nemesis, at, lasts, number: rng.u32(1..=8) });
        at += lasts + between(&mut rng, 200, 1_500);
    }
    strikes
}

fn lasts(nemesis: Nemesis, lease: Duration, rng: &mut fastrand::Rng) -> Duration {
    match nemesis {
        Nemesis::Term | Nemesis::NetworkReset => Duration::ZERO,
        Nemesis::Kill | Nemesis::ServerKill => between(rng, 0, 1_000),
        Nemesis::Pause => lease.mul_f64(1.1 + 0.4 * rng.f64()),
        Nemesis::EioWrite | Nemesis::EioSync => between(rng, 500, 1_500),
        Nemesis::DiskFull => between(rng, 300, 2_000),
        Nemesis::ClockForward | Nemesis::ClockBack => between(rng, 500, 3_000),
        Nemesis::SlotMove => between(rng, 100, 3_000),
        Nemesis::ServerFreeze | Nemesis::LeaderKill | Nemesis::Promotion | Nemesis::NetworkHold => {
            between(rng, 500, 4_500)
        }
    }
}

fn between(rng: &mut fastrand::Rng, least: u64, most: u64) -> Duration {
    Duration::from_millis(rng.u64(least..most))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Nemesis; 4] = [Nemesis::Kill, Nemesis::Term, Nemesis::Pause, Nemesis::DiskFull];

    fn lanes(seed: u64) -> Vec<Vec<Strike>> {
        let (length, lease) = (Duration::from_secs(20), Duration::from_secs(3));
        (0..3).map(|lane| schedule(seed, lane, &ALL, length, lease)).collect()
    }

    #[test]
    fn a_seed_decides_everything() {
        assert_eq!(lanes(7), lanes(7));
        assert_ne!(lanes(7), lanes(8));
        let lanes = lanes(7);
        assert_ne!(lanes[0], lanes[1]);
        assert!(lanes.iter().flatten().all(|strike| strike.at < Duration::from_secs(20)));
    }

    #[test]
    fn every_nemesis_is_drawn_and_those_of_different_lanes_overlap() {
        let strikes: Vec<_> = (0..20).flat_map(lanes).collect();
        for nemesis in ALL {
            assert!(strikes.iter().flatten().any(|strike| strike.nemesis == nemesis), "{nemesis}");
        }
        let overlap = |a: &Strike, b: &Strike| a.at < b.at + b.lasts && b.at < a.at + a.lasts;
        let overlapping = |lanes: &Vec<Vec<Strike>>| {
            lanes[0].iter().any(|one| lanes[1].iter().any(|other| overlap(one, other)))
        };
        assert!((0..20).map(lanes).any(|lanes| overlapping(&lanes)));
        for lane in &strikes {
            assert!(lane.windows(2).all(|pair| pair[0].at + pair[0].lasts < pair[1].at));
        }
    }

    #[test]
    fn without_nemeses_there_is_no_strike() {
        assert_eq!(schedule(1, 0, &[], Duration::from_secs(9), Duration::from_secs(3)), []);
    }
}
