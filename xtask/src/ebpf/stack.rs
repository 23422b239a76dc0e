//! How much of its stack each kernel program uses: the verifier allows 512 bytes, and says so only when it refuses.

use anyhow::Context;
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SectionKind, SymbolKind};

/// Most bytes a program may use (`MAX_BPF_STACK`, Linux).
pub const LIMIT: u32 = 512;

/// Bytes of one instruction (RFC 9669 section 3).
const INSTRUCTION: usize = 8;
/// The register that points at the end of the stack.
const FRAME_POINTER: u8 = 10;
/// Opcodes (RFC 9669 sections 4 and 5): adding a constant, and copying a register.
const ADD_CONSTANT: u8 = 0x07;
const COPY: u8 = 0xbf;
/// Instruction classes that load from or store to memory.
const LOAD: u8 = 1;
const STORE_CONSTANT: u8 = 2;
const STORE: u8 = 3;

/// Name and bytes of stack of each program in an ELF image, without those of functions it calls.
pub fn of_programs(image: &[u8]) -> anyhow::Result<Vec<(String, u32)>> {
    let file = object::File::parse(image).context("reading the object")?;
    let mut found = Vec::new();
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_global()) {
        let section = symbol.section_index().context("a function outside of any section")?;
        let section = file.section_by_index(section)?;
        if section.kind() != SectionKind::Text || section.name()? == ".text" {
            continue;
        }
        let code = section.data_range(symbol.address(), symbol.size())?.context("a function without code")?;
        found.push((symbol.name()?.to_owned(), of_code(code)));
    }
    found.sort();
    Ok(found)
}

/// The deepest byte that code reaches below the frame pointer, directly or by a register that was made from it.
fn of_code(code: &[u8]) -> u32 {
    let mut deepest = 0;
    let mut copied_to = None;
    for instruction in code.chunks_exact(INSTRUCTION) {
        let [opcode, registers, low, high, constant @ ..] = instruction else { continue };
        let (destination, source) = (registers & 0xf, registers >> 4);
        let offset = i32::from(i16::from_le_bytes([*low, *high]));
        let constant = constant.try_into().map_or(0, i32::from_le_bytes);
        let base = match opcode & 7 {
            LOAD => Some(source),
            STORE_CONSTANT | STORE => Some(destination),
            _ => None,
        };
        let reached = if base == Some(FRAME_POINTER) {
            offset
        } else if *opcode == ADD_CONSTANT && copied_to == Some(destination) {
            constant
        } else {
            0
        };
        copied_to = (*opcode == COPY && source == FRAME_POINTER).then_some(destination);
        deepest = deepest.max(reached.min(0).unsigned_abs());
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_loads_and_pointers_into_the_stack_are_seen() {
        let store = [0x7b, 0x1a, 0xf0, 0xff, 0, 0, 0, 0];
        let load = [0x79, 0xa1, 0xe8, 0xff, 0, 0, 0, 0];
        let pointer = [[0xbf, 0xa2, 0, 0, 0, 0, 0, 0], [0x07, 0x02, 0, 0, 0xd8, 0xff, 0xff, 0xff]].concat();
        assert_eq!(of_code(&store), 16);
        assert_eq!(of_code(&[store, load].concat()), 24);
        assert_eq!(of_code(&[&store[..], &load, &pointer].concat()), 40);
    }

    #[test]
    fn other_memory_and_arithmetic_is_not_the_stack() {
        let to_packet = [0x7b, 0x16, 0x00, 0xff, 0, 0, 0, 0];
        let subtraction = [0x07, 0x03, 0, 0, 0x00, 0xff, 0xff, 0xff];
        assert_eq!(of_code(&[to_packet, subtraction].concat()), 0);
    }
}
