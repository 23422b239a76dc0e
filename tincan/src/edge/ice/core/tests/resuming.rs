//! One side is killed and goes on from what it knew: the other side must not notice.

use super::*;
use crate::ice::Resumption;

/// What a snapshot has of a side.
fn resumption(world: &World, side: usize, silence: Duration) -> Resumption {
    let (generation, pair) = *world.selected(side).last().unwrap();
    Resumption {
        own: world.sides[side].candidates.clone(),
        peer: world.sides[1 - side].candidates.clone(),
        generation,
        pair,
        reachable: true,
        silence,
    }
}

/// The process of a side ends; another one has nothing of it.
fn kill(world: &mut World, side: usize) {
    let config = world.sides[side].core.config.clone();
    world.sides[side].core = Core::new(config);
    world.sides[side].agents.clear();
    world.sides[side].told.clear();
}

fn resume(world: &mut World, side: usize, resumption: Resumption) {
    let role = if side == 0 { Role::Controlling } else { Role::Controlled };
    let resumption = Box::new(resumption);
    world.command(side, IceCommand::Resume { link: LINK, port: PortKind::Secured, role, resumption });
}

#[test]
fn a_side_that_is_killed_and_goes_on_within_three_seconds_is_not_missed() {
    for side in 0..2 {
        let mut world = World::connected(11);
        world.run(Duration::from_secs(10));
        let kept = resumption(&world, side, Duration::from_secs(3));
        kill(&mut world, side);
        world.run(Duration::from_secs(3));
        resume(&mut world, side, kept);
        let resumed_at = world.now;
        world.run(Duration::from_secs(120));
        for end in 0..2 {
            assert!(world.when(end, |event| is_lost(event) || is_back(event)).is_none(), "{side} {end}");
        }
        let heard = world.when(side, |event| matches!(event, IceEvent::RoundTrip { .. })).expect("it is answered");
        assert!(heard - resumed_at < Duration::from_millis(100), "{:?}", heard - resumed_at);
        assert!(world.sides[side].agents.is_empty(), "nothing is left to find");
    }
}

#[test]
fn both_sides_may_be_killed_at_once() {
    let mut world = World::connected(12);
    let kept = [0, 1].map(|side| resumption(&world, side, Duration::from_secs(1)));
    kill(&mut world, 0);
    kill(&mut world, 1);
    for (side, kept) in kept.into_iter().enumerate() {
        resume(&mut world, side, kept);
    }
    world.run(Duration::from_secs(60));
    assert!((0..2).all(|side| world.when(side, is_lost).is_none()));
    assert!((0..2).all(|side| world.when(side, |event| matches!(event, IceEvent::RoundTrip { .. })).is_some()));
}

#[test]
fn a_resumed_link_whose_peer_is_gone_is_lost_as_any_other() {
    for silence in [1, 29, 60] {
        let mut world = World::connected(13);
        let kept = resumption(&world, 0, Duration::from_secs(silence));
        kill(&mut world, 0);
        world.is_cut = true;
        resume(&mut world, 0, kept);
        let resumed_at = world.now;
        world.run(Duration::from_secs(60));
        let lost = world.when(0, is_lost).expect("it is told") - resumed_at;
        assert_eq!(lost.as_secs(), 5, "{silence} s");
    }
}

#[test]
fn a_resumed_link_follows_its_peer_to_a_later_generation_and_leads_it_to_one() {
    for leader in 0..2 {
        let mut world = World::connected(14);
        let kept = resumption(&world, 0, Duration::from_secs(1));
        kill(&mut world, 0);
        resume(&mut world, 0, kept);
        world.sides[1 - leader].is_driven = true;
        world.run(Duration::from_secs(1));
        world.command(leader, IceCommand::Restart { link: LINK, generation: 1 });
        world.run(Duration::from_secs(5));
        for side in 0..2 {
            assert_eq!(world.selected(side).last().map(|(generation, _)| *generation), Some(1), "{leader} {side}");
        }
        let kept = world.sides[0].core.links[&LINK].generations.iter();
        assert_eq!(kept.map(|generation| generation.number).collect::<Vec<_>>(), [1]);
    }
}

#[test]
fn what_cannot_be_resumed_is_told_as_lost() {
    let mut world = World::connected(15);
    let kept = resumption(&world, 0, Duration::ZERO);
    resume(&mut world, 0, kept.clone());
    assert!(world.when(0, is_lost).is_some(), "the link is there already");
    kill(&mut world, 0);
    resume(&mut world, 0, Resumption { peer: Vec::new(), ..kept });
    assert!(world.when(0, is_lost).is_some(), "there is nobody to check");
    assert!(world.sides[0].core.links.is_empty());
}

#[test]
fn frames_hold_a_plain_link_for_the_lease_and_a_secured_one_for_the_time_of_consent() {
    for (port, bound) in [(PortKind::Plain, LEASE), (PortKind::Secured, Duration::from_secs(30))] {
        let mut world = World::connected(16);
        let kept = resumption(&world, 0, Duration::ZERO);
        kill(&mut world, 0);
        world.is_cut = true;
        let resumption = Box::new(kept);
        world.command(0, IceCommand::Resume { link: LINK, port, role: Role::Controlling, resumption });
        let start = world.now;
        for _ in 0..50 {
            world.command(0, IceCommand::TrafficSeen { link: LINK });
            world.run(Duration::from_secs(2));
        }
        let lost = world.when(0, is_lost).expect("it is told") - start;
        assert_eq!(lost.as_secs(), bound.as_secs(), "{port:?}");
    }
}
