//! A device as cubecl reaches it: a client, which hands work to the thread of the device, and that thread itself.

use std::ops::Deref;

use cubecl::prelude::{ComputeClient, Runtime};
use cubecl_common::bytes::Bytes;
use cubecl_common::device::Device;
use cubecl_common::device_handle::DeviceHandle;
use cubecl_common::stream_id::StreamId;
use cubecl_runtime::server::{ComputeServer, CopyDescriptor, Handle};

/// All clients use this one stream: work from any thread runs in the order it was issued.
pub(super) const STREAM: StreamId = StreamId { value: 0 };

/// cubecl's client, and what it keeps to itself.
pub(crate) struct Client<R: Runtime> {
    client: ComputeClient<R>,
    thread: DeviceHandle<R::Server>,
}

impl<R: Runtime> Client<R> {
    /// The client of a device, which opens it if nobody has.
    pub(super) fn load(device: &R::Device) -> Client<R> {
        let mut client = R::client(device);
        // SAFETY: the stream is set once, before any work.
        unsafe { client.set_stream(STREAM) };
        Client {
            client,
            thread: DeviceHandle::new(device.to_id()),
        }
    }

    /// A new buffer with `data`, in the order of launches. With `locked`, the data go through page-locked memory, where
    /// there is such a thing: from other memory the driver copies only after all work before, and the device's thread,
    /// which issues everything, waits.
    ///
    /// [`ComputeClient::create`] does not do for this: it copies what it is given to ordinary memory, twice.
    pub(super) fn upload(&self, data: Bytes, locked: bool) -> Handle {
        let len = data.len();
        let handle = self.client.empty(len);
        let to = CopyDescriptor::new(handle.clone().binding(), [len].into(), [1].into(), 1);
        self.thread.submit(move |server| {
            let stage = || server.staging(&[len], STREAM).ok()?.pop();
            let data = match locked.then(stage).flatten() {
                Some(mut stage) => {
                    stage.copy_from_slice(&data);
                    stage
                }
                None => data,
            };
            server.write(vec![(to, data)], STREAM);
        });
        handle
    }
}

impl<R: Runtime> Clone for Client<R> {
    fn clone(&self) -> Self {
        Client {
            client: self.client.clone(),
            thread: self.thread.clone(),
        }
    }
}

impl<R: Runtime> Deref for Client<R> {
    type Target = ComputeClient<R>;

    fn deref(&self) -> &ComputeClient<R> {
        &self.client
    }
}

#[cfg(test)]
mod tests {
    use crate::gpu::Gpu;
    use crate::gpu::transfer::LOCKED;
    use crate::ops::testing::gpu;

    /// Sizes around both limits of page-locked memory, of odd bytes and of none, each in order with a launch.
    #[test]
    fn what_was_uploaded_comes_back() {
        let emulated = Gpu::emulated_cuda(80).expect("a C++ compiler");
        for gpu in [gpu(), emulated] {
            for bytes in [0, 1, 13, *LOCKED.start() - 1, *LOCKED.start(), *LOCKED.end() + 3] {
                let words: Vec<u32> = (0..bytes as u32 / 4).map(|i| i.wrapping_mul(2654435761)).collect();
                let sent = gpu.upload_u32(&words, [words.len()]);
                assert_eq!(gpu.read_u32(&sent).expect("the device works"), words, "{bytes}");
                let copied = gpu.alloc(sent.dtype(), [words.len()]);
                gpu.copy(&sent, &copied);
                drop(sent);
                let zeros = gpu.upload_u32(&vec![0; words.len()], [words.len()]);
                assert_eq!(gpu.read_u32(&copied).expect("the device works"), words, "{bytes}");
                drop(zeros);
            }
        }
    }
}
