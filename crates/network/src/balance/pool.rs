//! The replicas of one service as netd sees them, and the choice among them.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::{Algorithm, Balance, State};

/// How long a replica gets no connections after the first that failed; it doubles with each trial that fails.
const BACKOFF: Duration = Duration::from_secs(1);
/// What the doubling ends at.
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);
/// How long a trial may stay undecided (its client may leave before) until the next; longer than netd lets a
/// connection attempt take.
const TRIAL: Duration = Duration::from_secs(10);

/// The replicas of one service: their states, their open connections, and who gets the next one.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    balance: Balance,
    /// Places keep their index while a connection counts on them.
    places: Vec<Place>,
    /// Where the next round starts.
    turn: usize,
}

#[derive(Debug, Default)]
struct Place {
    /// How often the place has become free.
    generation: u32,
    member: Option<Member>,
}

#[derive(Debug)]
struct Member {
    name: String,
    /// Of the name, for [`Algorithm::Source`].
    hash: u64,
    state: State,
    /// Connections that count on it.
    open: u32,
    ejection: Option<Ejection>,
    /// It is no member any more, and remembered for its open connections.
    left: bool,
}

/// A connection to it failed.
#[derive(Debug)]
struct Ejection {
    /// It gets no connection before, and then one at a time until one succeeds.
    until: Instant,
    backoff: Duration,
    /// Its backoff has passed, and a connection is finding out whether it is back.
    trial: bool,
}

/// Names a member for as long as it is one, or has open connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct MemberId {
    index: u32,
    generation: u32,
}

/// Who gets a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pick {
    /// This one.
    Member(MemberId),
    /// Nobody yet, but somebody is starting: hold the connection for a while and ask again.
    Wait,
    /// Nobody: all are down, draining, or have been tried.
    Nobody,
}

impl Pool {
    /// A pool without members.
    #[must_use]
    pub(crate) fn new(balance: Balance) -> Self {
        Self { balance, ..Self::default() }
    }

    /// How it balances.
    #[must_use]
    pub(crate) const fn balance(&self) -> &Balance {
        &self.balance
    }

    /// Changes how it balances, from the next connection on.
    pub(crate) fn set_balance(&mut self, balance: Balance) {
        self.balance = balance;
    }

    /// Replaces the members. Those that stay keep state, count and ejection; new ones are ready; those that have
    /// left get no connection and are remembered until their last one is closed.
    pub(crate) fn set_members<'a>(&mut self, names: impl IntoIterator<Item = &'a str>) {
        let mut stays = vec![false; self.places.len()];
        let mut joining: Vec<&str> = Vec::new();
        for name in names {
            match self.find(name) {
                Some(index) => stays[index] = true,
                None if joining.contains(&name) => {}
                None => joining.push(name),
            }
        }
        for (place, stays) in self.places.iter_mut().zip(stays) {
            let Some(member) = &mut place.member else { continue };
            if stays && member.left {
                // Another container under the same name.
                (member.state, member.ejection) = (State::Ready, None);
            }
            member.left = !stays;
            place.free_if_unused();
        }
        for name in joining {
            let index = self.places.iter().position(|place| place.member.is_none()).unwrap_or_else(|| {
                self.places.push(Place::default());
                self.places.len() - 1
            });
            self.places[index].member = Some(Member {
                name: name.to_owned(),
                hash: hash(name),
                state: State::Ready,
                open: 0,
                ejection: None,
                left: false,
            });
        }
    }

    /// What has become of a member; other names are ignored. A member that becomes ready is not ejected any more:
    /// the supervisor knows better than the failures before.
    ///
    /// Returns its name when it drains and has no open connection.
    pub(crate) fn set_state(&mut self, name: &str, state: State) -> Option<String> {
        let index = self.find(name)?;
        let member = self.places[index].member.as_mut()?;
        if state == State::Ready && member.state != State::Ready {
            member.ejection = None;
        }
        member.state = state;
        member.drained()
    }

    /// Chooses the member for a connection of `client`; `tried` are those that it could not be made to.
    ///
    /// Ready ones first, then unhealthy ones, then ejected ones: the one whose ejection ends first. A pool is
    /// never empty because of ejections. Who was ejected and has waited long enough gets a connection as if it were
    /// not, but no second one while [`succeeded`](Self::succeeded) or [`failed`](Self::failed) has not been called.
    pub(crate) fn pick(&mut self, client: IpAddr, tried: &[MemberId], now: Instant) -> Pick {
        let chosen = self
            .choose(State::Ready, client, tried, now)
            .or_else(|| self.choose(State::Unhealthy, client, tried, now))
            .or_else(|| self.soonest(tried));
        let Some(index) = chosen else {
            let starting = |member: &Member| !member.left && member.state == State::Starting;
            let wait = self.places.iter().filter_map(|place| place.member.as_ref()).any(starting);
            return if wait { Pick::Wait } else { Pick::Nobody };
        };
        self.turn = index + 1;
        let place = &mut self.places[index];
        if let Some(ejection) = place.member.as_mut().and_then(|member| member.ejection.as_mut())
            && ejection.until <= now
        {
            ejection.trial = true;
            ejection.until = now + TRIAL;
        }
        Pick::Member(MemberId { index: index as u32, generation: place.generation })
    }

    /// A connection counts on the member from now on; call it as soon as one is attempted.
    pub(crate) fn opened(&mut self, id: MemberId) {
        if let Some(member) = self.get_mut(id) {
            member.open = member.open.saturating_add(1);
        }
    }

    /// A connection that [`opened`](Self::opened) has counted has ended, or could not be made.
    ///
    /// Returns the member's name when it drains and this was the last one.
    pub(crate) fn closed(&mut self, id: MemberId) -> Option<String> {
        let member = self.get_mut(id)?;
        member.open = member.open.saturating_sub(1);
        let drained = member.drained();
        self.places[id.index as usize].free_if_unused();
        drained
    }

    /// A connection to the member could not be made. Returns whether that has ejected it.
    pub(crate) fn failed(&mut self, id: MemberId, now: Instant) -> bool {
        let Some(member) = self.get_mut(id) else { return false };
        match &mut member.ejection {
            Some(ejection) if ejection.trial => {
                let backoff = (ejection.backoff * 2).min(LONGEST_BACKOFF);
                *ejection = Ejection { until: now + backoff, backoff, trial: false };
                false
            }
            // It was under way when another failed; a burst must not count as many trials.
            Some(_) => false,
            None => {
                member.ejection = Some(Ejection { until: now + BACKOFF, backoff: BACKOFF, trial: false });
                true
            }
        }
    }

    /// A connection to the member has been made. Returns whether that has ended its ejection.
    pub(crate) fn succeeded(&mut self, id: MemberId) -> bool {
        self.get_mut(id).is_some_and(|member| member.ejection.take().is_some())
    }

    /// A member's name.
    #[must_use]
    pub(crate) fn name(&self, id: MemberId) -> Option<&str> {
        self.get(id).map(|member| member.name.as_str())
    }

    fn get(&self, id: MemberId) -> Option<&Member> {
        let place = self.places.get(id.index as usize)?;
        place.member.as_ref().filter(|_| place.generation == id.generation)
    }

    fn get_mut(&mut self, id: MemberId) -> Option<&mut Member> {
        let place = self.places.get_mut(id.index as usize)?;
        place.member.as_mut().filter(|_| place.generation == id.generation)
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.places.iter().position(|place| place.member.as_ref().is_some_and(|member| member.name == name))
    }

    /// Members that have not been tried, from the one whose turn it is.
    fn untried<'a>(&'a self, tried: &'a [MemberId]) -> impl Iterator<Item = (usize, &'a Member)> {
        let turn = self.turn.min(self.places.len());
        (turn..self.places.len()).chain(0..turn).filter_map(move |index| {
            let place = &self.places[index];
            let id = MemberId { index: index as u32, generation: place.generation };
            let member = place.member.as_ref().filter(|member| !member.left && !tried.contains(&id))?;
            Some((index, member))
        })
    }

    /// The algorithm's choice among the members in this state.
    fn choose(&self, state: State, client: IpAddr, tried: &[MemberId], now: Instant) -> Option<usize> {
        let mut candidates =
            self.untried(tried).filter(|(_, member)| member.state == state && !member.is_ejected(now));
        let chosen = match self.balance.policy {
            Algorithm::RoundRobin => candidates.next(),
            // The first of several, in turn.
            Algorithm::LeastConn => candidates.min_by_key(|(_, member)| member.open),
            Algorithm::Source => {
                let client = hash_of_client(client);
                candidates.max_by_key(|(_, member)| mix(client ^ member.hash))
            }
        };
        chosen.map(|(index, _)| index)
    }

    /// The ejected member whose ejection ends first.
    fn soonest(&self, tried: &[MemberId]) -> Option<usize> {
        let ejected = self.untried(tried).filter_map(|(index, member)| {
            let usable = matches!(member.state, State::Ready | State::Unhealthy);
            member.ejection.as_ref().filter(|_| usable).map(|ejection| (index, ejection.until))
        });
        ejected.min_by_key(|(_, until)| *until).map(|(index, _)| index)
    }
}

impl Place {
    fn free_if_unused(&mut self) {
        if self.member.take_if(|member| member.left && member.open == 0).is_some() {
            self.generation = self.generation.wrapping_add(1);
        }
    }
}

impl Member {
    fn is_ejected(&self, now: Instant) -> bool {
        self.ejection.as_ref().is_some_and(|ejection| now < ejection.until)
    }

    fn drained(&self) -> Option<String> {
        (self.state == State::Draining && self.open == 0).then(|| self.name.clone())
    }
}

/// FNV-1a. Without a random key, as `HashMap` has it: clients keep their replicas when netd is started again.
fn hash(name: &str) -> u64 {
    name.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The client's part of a score in rendezvous hashing; an IPv4 address is one however it is written.
fn hash_of_client(client: IpAddr) -> u64 {
    match client.to_canonical() {
        IpAddr::V4(address) => mix(u64::from(u32::from(address))),
        IpAddr::V6(address) => {
            let bits = u128::from(address);
            mix(mix((bits >> 64) as u64) ^ bits as u64)
        }
    }
}

/// The finalizer of SplitMix64: each bit of the input changes half of the output's.
const fn mix(bits: u64) -> u64 {
    let bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests;
