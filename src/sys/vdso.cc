// Problem. Programs know where the functions of their vdso are: libc looked them up when the
// program started. On another kernel the vdso has other code at these addresses (6.1 and 6.12 have
// both two pages, 12 functions and nothing at the same offset: a program moved from one to the
// other reads clocks that say nonsense, or crashes). And the old code can't move along, since it
// reads the kernel's data pages (vvar), whose layout is the business of one kernel.
//
// Way. Where the program believes its vdso to be it gets an ordinary mapping with the image of the
// old vdso: headers and symbols are as they were, but each function begins with a jump. The real
// vdso of the kernel lies somewhere else. What the jumps lead to must be the same on every kernel
// that the program will still come to, as the mapping is from now on memory like any other. So
// they lead to stubs at the very end of the real vdso, which ends at the same address on each
// kernel, and only these know where the functions are on this one:
//
//   program -> old image: clock_gettime: jmp -> [real_end - 128 + ...]: jmp -> clock_gettime
//
// The stubs are in a private copy of the vdso's last page, as injected code is (remote.cc), whose
// end is zero: 6.1 uses 0xd5d of 0x2000 bytes in memory (and 0x1219 of its file), 6.12 0x1c11,
// 6.18 0x1a11. A function that this kernel lacks (getrandom before 6.11) is a system call.
//
// The header of the old image says where the real one ends, in its 7 bytes of padding, which
// nothing reads: a tracer needs to know it in a freeze, where a list of mappings may cost
// milliseconds.
//
// A thread that is inside a function of the vdso when its program is moved to another kernel would
// go on in the middle of code whose data are gone. So such threads are let go on until they are
// out (capture/freeze.cc). What remains is a signal handler that has interrupted such a function:
// when it returns, the old code finds zeros where vvar was, as a clock source of no kind, and makes
// the system call. (Not so the coarse clocks: they read zero once.)
//
// Cost: 20 ns a call become 22.
#include "sys/vdso.h"

#include <elf.h>
#include <fcntl.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <string_view>

#include "base/io.h"
#include "sys/proc.h"

namespace godwit::sys {
namespace {

constexpr std::uint64_t page_bytes = 4096;
constexpr std::uint64_t vdso_bytes_max = 64 * 1024;
constexpr std::size_t stub_bytes = 16;
constexpr std::array<char, 16> stubs_magic = {'g', 'o', 'd', 'w', 'i', 't', ' ', 'v',
                                              'd', 's', 'o', ' ', 's', 't', 'u', 'b'};
static_assert(stubs_magic.size() + vdso_functions * stub_bytes == vdso_stubs_bytes);

struct Function {
  std::string_view name;
  long call;  // Does the same; -1: nothing does.
};
constexpr std::array<Function, vdso_functions> functions{{
    {"clock_gettime", SYS_clock_gettime},
    {"gettimeofday", SYS_gettimeofday},
    {"time", SYS_time},
    {"clock_getres", SYS_clock_getres},
    {"getcpu", SYS_getcpu},
    {"getrandom", SYS_getrandom},
    {"sgx_enter_enclave", -1},
}};

// e_ident of an image that leads elsewhere: two letters, then the number of the page where the
// real one ends.
constexpr std::size_t padding_at = EI_PAD;
constexpr std::array<unsigned char, 2> forwarded_mark = {'g', 'w'};
constexpr std::size_t page_number_bytes = 5;
static_assert(padding_at + forwarded_mark.size() + page_number_bytes == EI_NIDENT);
static_assert(page_number_bytes * 8 + 12 >= 47);

// Jumps by r11, which a function may change without saying so and which no caller passes.
constexpr std::size_t jump_bytes = 13;
void put_jump(std::byte* at, std::uint64_t to) {
  constexpr unsigned char code[jump_bytes] = {0x49, 0xbb, 0, 0, 0, 0, 0, 0, 0, 0, 0x41, 0xff, 0xe3};
  std::memcpy(at, code, sizeof code);
  std::memcpy(at + 2, &to, sizeof to);
}

// mov $nr,%eax; syscall; ret, or: mov $-ENOSYS,%eax; ret
void put_call(std::byte* at, long nr) {
  const auto eax = static_cast<std::int32_t>(nr < 0 ? -ENOSYS : nr);
  const unsigned char call[] = {0x0f, 0x05, 0xc3};
  at[0] = std::byte{0xb8};
  std::memcpy(at + 1, &eax, sizeof eax);
  if (nr < 0)
    at[5] = std::byte{0xc3};
  else
    std::memcpy(at + 5, call, sizeof call);
}

// Reads of an ELF image that may lie to us.
template <typename T>
std::optional<T> at_offset(std::span<const std::byte> image, std::uint64_t offset) {
  if (offset > image.size() || image.size() - offset < sizeof(T)) return std::nullopt;
  T value;  // Copied: nothing says that it is aligned.
  std::memcpy(&value, image.data() + offset, sizeof value);
  return value;
}

std::string_view string_at(std::span<const std::byte> image, std::uint64_t offset) {
  if (offset >= image.size()) return {};
  const char* text = reinterpret_cast<const char*>(image.data() + offset);
  return {text, strnlen(text, image.size() - offset)};
}

std::string find_build_id(std::span<const std::byte> image, const Elf64_Phdr& notes) {
  for (std::uint64_t at = notes.p_offset; at < notes.p_offset + notes.p_filesz;) {
    const auto note = at_offset<Elf64_Nhdr>(image, at);
    if (!note) break;
    const std::uint64_t name = at + sizeof *note;
    const std::uint64_t content = name + ((note->n_namesz + 3ull) & ~3ull);
    if (note->n_type == NT_GNU_BUILD_ID && string_at(image, name) == "GNU" &&
        content + note->n_descsz <= image.size())
      return {reinterpret_cast<const char*>(image.data() + content), note->n_descsz};
    at = content + ((note->n_descsz + 3ull) & ~3ull);
  }
  return {};
}

void add_function(VdsoImage& out, std::string_view name, std::uint32_t offset) {
  constexpr std::string_view prefix = "__vdso_";
  if (name.starts_with(prefix)) name.remove_prefix(prefix.size());
  for (std::size_t i = 0; i < functions.size(); ++i) {
    if (functions[i].name != name) continue;
    out.offsets[i] = offset;
    return;
  }
  out.unknown.push_back(offset);
}

Error broken(const char* what) { return make_error(Errc::invalid, "vdso image: {}", what); }

}  // namespace

Result<VdsoImage> parse_vdso(std::span<const std::byte> image) {
  VdsoImage out;
  const auto header = at_offset<Elf64_Ehdr>(image, 0);
  if (!header || std::memcmp(header->e_ident, ELFMAG, SELFMAG) != 0)
    return broken("no ELF header");
  // Loaded at offset 0 by the kernel, so that addresses are offsets.
  std::uint64_t dynamic = 0;
  for (unsigned i = 0; i < header->e_phnum; ++i) {
    const auto segment =
        at_offset<Elf64_Phdr>(image, header->e_phoff + i * std::uint64_t{sizeof(Elf64_Phdr)});
    if (!segment) return broken("segments beyond its end");
    if (segment->p_type == PT_DYNAMIC) dynamic = segment->p_offset;
    if (segment->p_type == PT_NOTE && out.build_id.empty())
      out.build_id = find_build_id(image, *segment);
  }
  std::uint64_t symbols = 0, strings = 0, hash = 0;
  for (std::uint64_t at = dynamic; dynamic != 0; at += sizeof(Elf64_Dyn)) {
    const auto entry = at_offset<Elf64_Dyn>(image, at);
    if (!entry || entry->d_tag == DT_NULL) break;
    if (entry->d_tag == DT_SYMTAB) symbols = entry->d_un.d_ptr;
    if (entry->d_tag == DT_STRTAB) strings = entry->d_un.d_ptr;
    if (entry->d_tag == DT_HASH) hash = entry->d_un.d_ptr;
  }
  // DT_HASH's second word is the number of symbols; without it (6.13 and later), .dynstr follows
  // .dynsym.
  const auto counted = hash != 0 ? at_offset<std::uint32_t>(image, hash + 4) : std::nullopt;
  const std::uint64_t count = counted             ? *counted
                              : strings > symbols ? (strings - symbols) / sizeof(Elf64_Sym)
                                                  : 0;
  for (std::uint64_t i = 0; symbols != 0 && i < count; ++i) {
    const auto symbol = at_offset<Elf64_Sym>(image, symbols + i * sizeof(Elf64_Sym));
    if (!symbol) return broken("symbols beyond its end");
    if (ELF64_ST_TYPE(symbol->st_info) != STT_FUNC || symbol->st_shndx == SHN_UNDEF) continue;
    if (symbol->st_value == 0 || symbol->st_value + jump_bytes > image.size())
      return broken("a function beyond its end");
    add_function(out, string_at(image, strings + symbol->st_name),
                 static_cast<std::uint32_t>(symbol->st_value));
  }
  if (out.build_id.empty() || out.offsets[0] == 0) return broken("no build id or no clock_gettime");
  return out;
}

Result<std::string> own_vdso() {
  for (const MapEntry& map : TRY(read_maps(::getpid()))) {
    if (!map.is_special("[vdso]")) continue;
    return std::string(reinterpret_cast<const char*>(map.start), map.end - map.start);
  }
  return make_error(Errc::unsupported, "this process has no [vdso]");
}

Result<std::string> own_vdso_build_id() {
  const std::string image = TRY(own_vdso());
  return TRY(parse_vdso(std::as_bytes(std::span(image)))).build_id;
}

VdsoStubs make_vdso_stubs(const VdsoImage& real, std::uint64_t start) {
  VdsoStubs stubs{};
  std::memcpy(stubs.data(), stubs_magic.data(), stubs_magic.size());
  for (std::size_t i = 0; i < vdso_functions; ++i) {
    std::byte* at = stubs.data() + stubs_magic.size() + i * stub_bytes;
    if (real.offsets[i] != 0)
      put_jump(at, start + real.offsets[i]);
    else
      put_call(at, functions[i].call);
  }
  return stubs;
}

std::size_t before_vdso_stubs(std::span<const std::byte> last_page) {
  const std::size_t before = last_page.size() - vdso_stubs_bytes;
  const bool there =
      std::memcmp(last_page.data() + before, stubs_magic.data(), stubs_magic.size()) == 0;
  return there ? before : last_page.size();
}

Result<void> forward_vdso(std::span<std::byte> image, std::uint64_t real_end) {
  const VdsoImage old = TRY(parse_vdso(image));
  if (real_end % page_bytes != 0 || real_end >> (page_number_bytes * 8 + 12) != 0)
    return make_error(Errc::invalid, "a vdso that ends at {:#x}", real_end);
  const std::uint64_t first_stub = real_end - vdso_stubs_bytes + stubs_magic.size();
  for (std::size_t i = 0; i < vdso_functions; ++i)
    if (old.offsets[i] != 0) put_jump(image.data() + old.offsets[i], first_stub + i * stub_bytes);
  for (std::uint32_t offset : old.unknown) put_call(image.data() + offset, -1);
  const std::uint64_t page = real_end / page_bytes;
  std::memcpy(image.data() + padding_at, forwarded_mark.data(), forwarded_mark.size());
  std::memcpy(image.data() + padding_at + forwarded_mark.size(), &page, page_number_bytes);
  return {};
}

Result<VdsoPlace> find_vdso(pid_t pid) {
  const std::string auxv = TRY(read_file(proc_path(pid, "auxv")));
  std::uint64_t start = 0;
  for (std::size_t at = 0; at + 16 <= auxv.size(); at += 16) {
    std::uint64_t pair[2];
    std::memcpy(pair, auxv.data() + at, sizeof pair);
    if (pair[0] == AT_SYSINFO_EHDR) start = pair[1];
  }
  if (start == 0) return VdsoPlace{};
  const UniqueFd memory = TRY(open_fd(proc_path(pid, "mem"), O_RDONLY));
  Elf64_Ehdr header{};
  const ssize_t n = ::pread(memory.get(), &header, sizeof header, static_cast<off_t>(start));
  // Not there any more: the program has unmapped it, which preflight says in its words.
  if (n != static_cast<ssize_t>(sizeof header)) return VdsoPlace{};
  const auto* padding = header.e_ident + padding_at;
  if (std::memcmp(padding, forwarded_mark.data(), forwarded_mark.size()) != 0) {
    // Section headers are the last thing in the file, and the kernel maps all of it.
    const std::uint64_t bytes = header.e_shoff + std::uint64_t{header.e_shnum} * header.e_shentsize;
    const std::uint64_t mapped = (bytes + page_bytes - 1) / page_bytes * page_bytes;
    return VdsoPlace{start, start + std::clamp(mapped, page_bytes, vdso_bytes_max)};
  }
  std::uint64_t page = 0;
  std::memcpy(&page, padding + forwarded_mark.size(), page_number_bytes);
  const std::uint64_t end = page * page_bytes;
  return VdsoPlace{end - std::min(end, vdso_room), end};
}

}  // namespace godwit::sys
