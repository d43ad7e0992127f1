//! A channel of several lanes whose content is bounded in bytes, of all lanes together, instead of in messages.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

/// Makes a channel with this many lanes, each with a receiver of its own, in which at most `room` bytes wait or are worked
/// on, or one message that is larger.
pub fn channel<T>(lanes: usize, room: usize) -> (Sender<T>, Vec<Receiver<T>>) {
    let lane = || Lane {
        waiting: VecDeque::new(),
        bytes: 0,
    };
    let shared = Arc::new(Shared {
        state: Mutex::new(State {
            lanes: (0..lanes).map(|_| lane()).collect(),
            closed: false,
        }),
        changed: Condvar::new(),
        room,
    });
    let receiver = |lane| Receiver {
        shared: shared.clone(),
        lane,
    };
    (Sender(shared.clone()), (0..lanes).map(receiver).collect())
}

/// Dropped, it lets the receivers take what is left, and then end.
pub struct Sender<T>(Arc<Shared<T>>);

/// Dropped before the sender, it ends all lanes: what waits is lost, and the sender goes on to no effect.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    lane: usize,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    room: usize,
}

struct State<T> {
    lanes: Vec<Lane<T>>,
    closed: bool,
}

struct Lane<T> {
    waiting: VecDeque<(T, usize)>,
    /// Waiting or being worked on.
    bytes: usize,
}

impl<T> State<T> {
    fn bytes(&self) -> usize {
        self.lanes.iter().map(|lane| lane.bytes).sum()
    }
}

impl<T> Shared<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn wait<'a>(&'a self, state: MutexGuard<'a, State<T>>) -> MutexGuard<'a, State<T>> {
        self.changed.wait(state).unwrap_or_else(|e| e.into_inner())
    }
}

impl<T> Sender<T> {
    /// Hands over a message of `bytes` to a lane; waits for room.
    pub fn send(&self, lane: usize, message: T, bytes: usize) {
        let mut state = self.0.state();
        while !state.closed && state.bytes() > 0 && state.bytes() + bytes > self.0.room {
            state = self.0.wait(state);
        }
        if !state.closed {
            let lane = &mut state.lanes[lane];
            lane.bytes += bytes;
            lane.waiting.push_back((message, bytes));
            self.0.changed.notify_all();
        }
    }

    /// Bytes under way in each lane.
    pub fn load(&self) -> Vec<usize> {
        self.0.state().lanes.iter().map(|lane| lane.bytes).collect()
    }

    /// Most bytes that wait or are worked on.
    pub fn room(&self) -> usize {
        self.0.room
    }

    /// Whether a receiver has given up, so that nothing will be taken any more.
    pub fn is_closed(&self) -> bool {
        self.0.state().closed
    }
}

impl<T> Receiver<T> {
    /// Takes the oldest message and the count of its bytes, which take up room until [`Receiver::done`]; `None` when
    /// the sender is gone.
    pub fn receive(&self) -> Option<(T, usize)> {
        let mut state = self.shared.state();
        loop {
            match state.lanes[self.lane].waiting.pop_front() {
                None if state.closed => return None,
                None => state = self.shared.wait(state),
                message => return message,
            }
        }
    }

    /// Makes room for what may come next.
    pub fn done(&self, bytes: usize) {
        self.shared.state().lanes[self.lane].bytes -= bytes;
        self.shared.changed.notify_all();
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.state().closed = true;
        self.0.changed.notify_all();
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        if !state.closed {
            state.closed = true;
            state.lanes.iter_mut().for_each(|lane| lane.waiting.clear());
            self.shared.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    #[test]
    fn no_more_than_the_room_waits_and_nothing_is_lost() {
        let (sender, receivers) = channel(3, 100);
        let (inside, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let sizes: Vec<usize> = (0..600).map(|i| i * 37 % 60).collect();
        thread::scope(|scope| {
            scope.spawn(|| {
                for (i, bytes) in sizes.iter().enumerate() {
                    sender.send(i % 3, i, *bytes);
                    most.fetch_max(inside.fetch_add(*bytes, Ordering::SeqCst) + bytes, Ordering::SeqCst);
                }
                drop(sender);
            });
            for (lane, receiver) in receivers.into_iter().enumerate() {
                let (inside, sizes) = (&inside, &sizes);
                scope.spawn(move || {
                    for (i, bytes) in sizes.iter().enumerate().filter(|(i, _)| i % 3 == lane) {
                        assert_eq!(receiver.receive(), Some((i, *bytes)));
                        inside.fetch_sub(*bytes, Ordering::SeqCst);
                        receiver.done(*bytes);
                    }
                    assert_eq!(receiver.receive(), None);
                });
            }
        });
        // Once more than the room may be counted, by a sender that was told of room before it could count.
        assert!(most.load(Ordering::SeqCst) <= 160, "{most:?}");
    }

    #[test]
    fn a_message_larger_than_the_room_passes_alone_and_a_receiver_that_is_gone_blocks_nobody() {
        let (sender, mut receivers) = channel(2, 10);
        sender.send(1, "large", 1000);
        assert_eq!(sender.load(), [0, 1000]);
        assert_eq!(receivers[1].receive(), Some(("large", 1000)));
        receivers[1].done(1000);
        sender.send(0, "full", 10);
        assert!(!sender.is_closed());
        drop(receivers.pop());
        assert!(sender.is_closed());
        sender.send(0, "lost", 10);
        // What waited in the other lane is not worked on for nothing.
        assert_eq!(receivers[0].receive(), None);
    }
}
