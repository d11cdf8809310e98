//! The maps as the controller reaches them, so that the controller can be tried over plain memory.

use std::thread::JoinHandle;

use lb_common::{
    abi::{BackendInfo, Bucket, Control, Counter, Fence, HotInfo, HotLine, Presence, ServiceInfo},
    address::Ipv6,
    flow::{FlowBucket, FlowBucket6},
    hot::HotWord,
    pick::{Backend, Slot},
    service::{Directory, NoVip},
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
    /// Swaps the halves with one store. `no_vip` belongs to the half that is then in use.
    fn set_directory(&self, directory: Directory, no_vip: NoVip);
    /// The flow table.
    fn flow_buckets(&self) -> &[FlowBucket];
    /// The fragment table.
    fn fragment_buckets(&self) -> &[FlowBucket];
    /// The IPv6 clients' flow table.
    fn flow6_buckets(&self) -> &[FlowBucket6];
    /// The IPv6 VIP that the data path compares for this service id; all zeros where there never was one.
    fn vip(&self, service: u16) -> Ipv6;
    /// Writes it: before any lookup names the id for that VIP.
    fn set_vip(&self, service: u16, vip: Ipv6);
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
    /// The backend that has all slots of an area, counted over all tables.
    fn area(&self, index: u32) -> Option<u16>;
    /// Writes it with one store.
    fn set_area(&self, index: u32, backend: u16);
    /// A backend's entry.
    fn backend(&self, number: u16) -> Backend;
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
    /// What fences the backends of a cluster, by number.
    fn fences(&self) -> &[Fence];
    /// What this node's data path tells the peers in a cluster, by a service's place among this node's.
    fn presences(&self) -> &[Presence];
    /// The hot sources.
    fn hot_lines(&self) -> &[HotLine];
    /// Writes the place of a hot source, counted over all lines, with one store.
    fn set_hot(&self, place: u32, word: HotWord);
    /// A hot source as people know it.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    fn hot_info(&self, place: u32) -> Result<Option<HotInfo>, DataplaneError>;
    /// Writes it.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    fn set_hot_info(&mut self, place: u32, info: HotInfo) -> Result<(), DataplaneError>;
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

/// One store swaps the halves; no VIP of either half is denied while that happens.
pub(super) fn swap(control: &Control, directory: Directory, no_vip: NoVip) {
    let before = NoVip(control.no_vip.get());
    control.no_vip.set(before.and(no_vip).0);
    control.directory.set(directory.0);
    control.no_vip.set(no_vip.0);
}

impl Memory for Maps {
    fn control(&self) -> &Control {
        self.control()
    }

    fn service_buckets(&self) -> &[Bucket] {
        self.service_buckets()
    }

    fn set_directory(&self, directory: Directory, no_vip: NoVip) {
        swap(self.control(), directory, no_vip);
    }

    fn flow_buckets(&self) -> &[FlowBucket] {
        self.flow_buckets()
    }

    fn fragment_buckets(&self) -> &[FlowBucket] {
        self.fragment_buckets()
    }

    fn flow6_buckets(&self) -> &[FlowBucket6] {
        self.flow6_buckets()
    }

    fn vip(&self, service: u16) -> Ipv6 {
        match self.vips().get(usize::from(service)) {
            Some(vip) => Ipv6 {
                high: vip.high.get(),
                low: vip.low.get(),
            },
            None => Ipv6 { high: 0, low: 0 },
        }
    }

    fn set_vip(&self, service: u16, vip: Ipv6) {
        self.set_vip(service, vip);
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

    fn area(&self, index: u32) -> Option<u16> {
        self.area(index)
    }

    fn set_area(&self, index: u32, backend: u16) {
        self.set_area(index, backend);
    }

    fn backend(&self, number: u16) -> Backend {
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

    fn fences(&self) -> &[Fence] {
        self.fences()
    }

    fn presences(&self) -> &[Presence] {
        self.presences()
    }

    fn hot_lines(&self) -> &[HotLine] {
        self.hot_lines()
    }

    fn set_hot(&self, place: u32, word: HotWord) {
        self.set_hot(place, word);
    }

    fn hot_info(&self, place: u32) -> Result<Option<HotInfo>, DataplaneError> {
        self.hot_info(place)
    }

    fn set_hot_info(&mut self, place: u32, info: HotInfo) -> Result<(), DataplaneError> {
        self.set_hot_info(place, info)
    }

    fn grace(&self) -> Grace {
        Grace::begin()
    }
}
