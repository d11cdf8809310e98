//! The direct maps: arrays of one value which the program reaches at a fixed address (`BPF_PSEUDO_MAP_VALUE`).
//!
//! aya makes such a map of a data section, as large as that is in the object, and fills it anew at each load; ours are as
//! large as the configuration wants, and what is pinned is in use. So aya makes one of a single element, the program's
//! instructions name it by its file descriptor, and before the program goes to the kernel that descriptor is made to
//! stand for our map: as `reuse_fd` of libbpf does (`tools/lib/bpf/libbpf_internal.h`).

use std::{
    os::fd::{AsFd, AsRawFd},
    path::Path,
};

use aya::{
    Ebpf,
    maps::{Map, MapData, MapError},
};
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_ARRAY;
use lb_common::abi::{MMAPABLE, map};

use super::{
    DataplaneError, Sizes,
    layout::{LAYOUTS, Layout, entries_of, info, open},
};

/// A direct map that is to take its place.
pub(super) struct Direct {
    layout: &'static Layout,
    section: &'static str,
    map: MapData,
    elements: u32,
}

/// The section of the kernel object that stands for a map; `None` where the map is not direct.
pub(super) fn section_of(name: &str) -> Option<&'static str> {
    map::DIRECT
        .into_iter()
        .find_map(|(direct, section)| (direct == name).then_some(section))
}

/// Opens the direct maps that are pinned in `dir`, and makes and pins those that are missing; without a directory, makes them
/// all.
///
/// # Errors
/// [`DataplaneError::Foreign`] where a pin is not ours, [`DataplaneError::Map`] with the kernel's words,
/// [`DataplaneError::Privileges`] without root.
pub(super) fn open_or_make(
    dir: Option<&Path>,
    sizes: &Sizes,
) -> Result<Vec<Direct>, DataplaneError> {
    let mut all = Vec::new();
    for layout in &LAYOUTS {
        let Some(section) = section_of(layout.name) else {
            continue;
        };
        let pin = dir.map(|dir| (dir, dir.join(layout.name)));
        let map = match &pin {
            Some((dir, path)) if path.symlink_metadata().is_ok() => open(dir, layout)?,
            _ => make(layout, sizes)?,
        };
        if let Some((_, path)) = &pin
            && path.symlink_metadata().is_err()
        {
            map.pin(path).map_err(|error| {
                let name = Some(layout.name.into());
                DataplaneError::map(layout.name, MapError::PinError { name, error })
            })?;
        }
        let info = info(layout.name, &map)?;
        let elements = layout.elements(info.value_size(), info.max_entries());
        all.push(Direct {
            layout,
            section,
            map,
            elements: elements.unwrap_or(0),
        });
    }
    Ok(all)
}

fn make(layout: &Layout, sizes: &Sizes) -> Result<MapData, DataplaneError> {
    let elements = entries_of(layout.name, sizes).unwrap_or(1);
    let bytes = layout
        .value_size
        .checked_mul(elements)
        .ok_or_else(|| DataplaneError::Foreign {
            path: layout.name.into(),
            what: format!("{elements} elements are more than a map can have"),
        })?;
    make_of(layout.name, bytes)
}

/// A map of one value of so many bytes.
///
/// # Errors
/// [`DataplaneError::Map`] with the kernel's words, [`DataplaneError::Privileges`] without root.
pub(super) fn make_of(name: &'static str, bytes: u32) -> Result<MapData, DataplaneError> {
    let definition =
        aya_obj::Map::new_from_params(BPF_MAP_TYPE_ARRAY as u32, 4, bytes, 1, MMAPABLE);
    MapData::create(definition, name, None).map_err(|error| {
        if nix::unistd::geteuid().is_root() {
            DataplaneError::map(name, error)
        } else {
            DataplaneError::Privileges {
                what: "making a BPF map".into(),
            }
        }
    })
}

/// What the program masks an index into the map of this name with, where an element is `parts` of what is counted.
///
/// # Errors
/// [`DataplaneError::Foreign`] where the number is not a power of two: no xdp-lb has made it so.
pub(super) fn mask(direct: &[Direct], name: &str, parts: u32) -> Result<u32, DataplaneError> {
    let found = direct.iter().find(|direct| direct.layout.name == name);
    let count = found.map_or(0, |direct| direct.elements.saturating_mul(parts));
    if !count.is_power_of_two() {
        return Err(DataplaneError::Foreign {
            path: name.into(),
            what: format!("it has {count} elements, which is no power of two"),
        });
    }
    Ok(count - 1)
}

/// Puts each direct map in the place of the one that aya made of its section. The object's programs must not be loaded yet.
///
/// # Errors
/// [`DataplaneError::Foreign`] where the object has no such section, [`DataplaneError::Io`] with the kernel's words.
pub(super) fn put_in_place(object: &Ebpf, direct: &[Direct]) -> Result<(), DataplaneError> {
    for Direct { section, map, .. } in direct {
        put(object, section, map)?;
    }
    Ok(())
}

/// Puts `map` in the place of the one that aya made of a section.
///
/// # Errors
/// As [`put_in_place`].
pub(super) fn put(
    object: &Ebpf,
    section: &'static str,
    map: &MapData,
) -> Result<(), DataplaneError> {
    let Some(Map::Array(place)) = object.map(section) else {
        return Err(DataplaneError::Foreign {
            path: section.into(),
            what: "the kernel object does not have it".into(),
        });
    };
    let (ours, place) = (map.fd().as_fd().as_raw_fd(), place.fd().as_fd().as_raw_fd());
    // SAFETY: both are open, and stay so: the one is borrowed, and the other stays the object's own; what it stands for is
    // an array either way, and nobody has looked at it in between.
    let result = unsafe { libc::dup3(ours, place, libc::O_CLOEXEC) };
    if result < 0 {
        return Err(DataplaneError::io(
            format!("putting map {section} in its place"),
            std::io::Error::last_os_error(),
        ));
    }
    Ok(())
}
