//! The maps as the controller reaches them, so that the controller can be tried over plain memory.

use std::thread::JoinHandle;

use lb_common::{
    abi::{BackendInfo, Bucket, Control, Counter, ServiceInfo},
    flow::FlowBucket,
    pick::{Backend, Slot},
    service::Directory,
    tables::Event,
    verdict::Verdict,
};

use crate::dataplane::{DataplaneError, Maps};

/// What operations are done on and adoption reads from.
pub trait Memory {
    /// What the whole data path shares.
    fn control(&self) -> &Control;
    /// The service lookup, both halves.
    fn service_buckets(&self) -> &[Bucket];
    /// Swaps the halves with one store.
    fn set_directory(&self, directory: Directory);
    /// The flow table.
    fn flow_buckets(&self) -> &[FlowBucket];
    /// How many slots there are.
    fn slot_capacity(&self) -> u32;
    /// How many backend numbers there are, 0 among them.
    fn backend_capacity(&self) -> u32;
    /// How many service ids there are.
    fn service_capacity(&self) -> u32;
    /// A slot, counted over all tables.
    fn slot(&self, index: u32) -> Option<Slot>;
    /// Writes a slot with one store.
    fn set_slot(&self, index: u32, slot: Slot);
    /// A backend's entry.
    fn backend(&self, number: u16) -> Option<Backend>;
    /// Writes a backend's entry with one store.
    fn set_backend(&self, number: u16, backend: Backend);
    /// What was counted for a backend number.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    fn counter(&self, number: u16) -> Result<Counter, DataplaneError>;
    /// The same of up to `count` numbers from `first` on.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    fn counters(&self, first: u16, count: u16) -> Result<Vec<Counter>, DataplaneError>;
    /// Packets of each verdict.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    fn verdicts(&self) -> Result<[u64; Verdict::COUNT], DataplaneError>;
    /// What the flow table had to do.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    fn events(&self) -> Result<[u64; Event::COUNT], DataplaneError>;
    /// A service as people know it.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    fn service_info(&self, id: u16) -> Result<Option<ServiceInfo>, DataplaneError>;
    /// Writes it.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    fn set_service_info(&mut self, id: u16, info: ServiceInfo) -> Result<(), DataplaneError>;
    /// A backend as people know it.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    fn backend_info(&self, number: u16) -> Result<Option<BackendInfo>, DataplaneError>;
    /// Writes it.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    fn set_backend_info(&mut self, number: u16, info: BackendInfo) -> Result<(), DataplaneError>;
    /// Begins to wait until every packet that is being processed now has left the program.
    fn grace(&self) -> Grace;
}

/// A wait for the packets on their way, in a thread of its own: it takes up to some tens of milliseconds, in which a failure
/// must not wait.
#[derive(Debug)]
pub struct Grace(Option<JoinHandle<()>>);

impl Grace {
    /// Over already.
    #[must_use]
    pub const fn over() -> Self {
        Self(None)
    }

    /// Begins.
    fn begin() -> Self {
        let thread = std::thread::Builder::new().name("grace".into());
        match thread.spawn(wait_for_packets) {
            Ok(thread) => Self(Some(thread)),
            Err(_no_thread) => {
                wait_for_packets();
                Self::over()
            }
        }
    }

    /// Whether [`Self::wait`] would return at once.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.0.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Returns when it is over.
    pub fn wait(self) {
        if let Some(thread) = self.0 {
            // It does nothing that panics.
            let _ = thread.join();
        }
    }
}

/// `membarrier(MEMBARRIER_CMD_GLOBAL)` is `synchronize_rcu()` (`kernel/sched/membarrier.c`), and an XDP program runs within
/// one RCU read-side section; where the kernel refuses it (`nohz_full`), a pause far longer than any program runs.
fn wait_for_packets() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: the call takes three integers and touches no memory.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result != 0 {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

impl Memory for Maps {
    fn control(&self) -> &Control {
        self.control()
    }

    fn service_buckets(&self) -> &[Bucket] {
        self.service_buckets()
    }

    fn set_directory(&self, directory: Directory) {
        self.control().directory.set(directory.0);
    }

    fn flow_buckets(&self) -> &[FlowBucket] {
        self.flow_buckets()
    }

    fn slot_capacity(&self) -> u32 {
        self.slot_capacity()
    }

    fn backend_capacity(&self) -> u32 {
        self.backend_capacity()
    }

    fn service_capacity(&self) -> u32 {
        self.service_capacity()
    }

    fn slot(&self, index: u32) -> Option<Slot> {
        self.slot(index)
    }

    fn set_slot(&self, index: u32, slot: Slot) {
        self.set_slot(index, slot);
    }

    fn backend(&self, number: u16) -> Option<Backend> {
        self.backend(number)
    }

    fn set_backend(&self, number: u16, backend: Backend) {
        self.set_backend(number, backend);
    }

    fn counter(&self, number: u16) -> Result<Counter, DataplaneError> {
        self.counter(number)
    }

    fn counters(&self, first: u16, count: u16) -> Result<Vec<Counter>, DataplaneError> {
        self.counters(first, count)
    }

    fn verdicts(&self) -> Result<[u64; Verdict::COUNT], DataplaneError> {
        self.verdicts()
    }

    fn events(&self) -> Result<[u64; Event::COUNT], DataplaneError> {
        self.events()
    }

    fn service_info(&self, id: u16) -> Result<Option<ServiceInfo>, DataplaneError> {
        self.service_info(id)
    }

    fn set_service_info(&mut self, id: u16, info: ServiceInfo) -> Result<(), DataplaneError> {
        self.set_service_info(id, info)
    }

    fn backend_info(&self, number: u16) -> Result<Option<BackendInfo>, DataplaneError> {
        self.backend_info(number)
    }

    fn set_backend_info(&mut self, number: u16, info: BackendInfo) -> Result<(), DataplaneError> {
        self.set_backend_info(number, info)
    }

    fn grace(&self) -> Grace {
        Grace::begin()
    }
}
