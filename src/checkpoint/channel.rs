//! A channel whose content is bounded in bytes instead of in messages.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

/// Makes a channel in which at most `room` bytes wait, or one message that is larger.
pub fn channel<T>(room: usize) -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        state: Mutex::new(State {
            waiting: VecDeque::new(),
            bytes: 0,
            closed: false,
        }),
        changed: Condvar::new(),
        room,
    });
    (Sender(shared.clone()), Receiver(shared))
}

/// Dropped, it lets the receiver take what is left, and then end.
pub struct Sender<T>(Arc<Shared<T>>);

/// Dropped, it lets the sender go on, to no effect.
pub struct Receiver<T>(Arc<Shared<T>>);

struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    room: usize,
}

struct State<T> {
    waiting: VecDeque<(T, usize)>,
    bytes: usize,
    closed: bool,
}

impl<T> Shared<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn wait<'a>(&'a self, state: MutexGuard<'a, State<T>>) -> MutexGuard<'a, State<T>> {
        self.changed.wait(state).unwrap_or_else(|e| e.into_inner())
    }

    fn close(&self) {
        self.state().closed = true;
        self.changed.notify_all();
    }
}

impl<T> Sender<T> {
    /// Hands over a message of `bytes`; waits for room.
    pub fn send(&self, message: T, bytes: usize) {
        let mut state = self.0.state();
        while !state.closed && state.bytes > 0 && state.bytes + bytes > self.0.room {
            state = self.0.wait(state);
        }
        if !state.closed {
            state.bytes += bytes;
            state.waiting.push_back((message, bytes));
            self.0.changed.notify_all();
        }
    }
}

impl<T> Receiver<T> {
    /// Takes the oldest message and the count of its bytes, which take up room until [`Receiver::done`]; `None` when
    /// the sender is gone.
    pub fn receive(&self) -> Option<(T, usize)> {
        let mut state = self.0.state();
        loop {
            match state.waiting.pop_front() {
                None if state.closed => return None,
                None => state = self.0.wait(state),
                message => return message,
            }
        }
    }

    /// Makes room for what may come next.
    pub fn done(&self, bytes: usize) {
        self.0.state().bytes -= bytes;
        self.0.changed.notify_all();
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.0.close();
        self.0.state().waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    #[test]
    fn no_more_than_the_room_waits_and_nothing_is_lost() {
        let (sender, receiver) = channel(100);
        let (inside, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let sizes: Vec<usize> = (0..500).map(|i| i * 37 % 60).collect();
        thread::scope(|scope| {
            scope.spawn(|| {
                for (i, bytes) in sizes.iter().enumerate() {
                    sender.send(i, *bytes);
                    most.fetch_max(inside.fetch_add(*bytes, Ordering::SeqCst) + bytes, Ordering::SeqCst);
                }
                drop(sender);
            });
            for (i, bytes) in sizes.iter().enumerate() {
                assert_eq!(receiver.receive(), Some((i, *bytes)));
                inside.fetch_sub(*bytes, Ordering::SeqCst);
                receiver.done(*bytes);
            }
            assert_eq!(receiver.receive(), None);
        });
        // Once more than the room may be counted, by a sender that was told of room before it could count.
        assert!(most.load(Ordering::SeqCst) <= 160, "{most:?}");
    }

    #[test]
    fn a_message_larger_than_the_room_passes_alone_and_a_receiver_that_is_gone_blocks_nobody() {
        let (sender, receiver) = channel(10);
        sender.send("large", 1000);
        assert_eq!(receiver.receive(), Some(("large", 1000)));
        receiver.done(1000);
        sender.send("full", 10);
        drop(receiver);
        sender.send("lost", 10);
    }
}
