// Which bits count. A library chooses its code by what CPUID says in user mode, so every bit of the
// feature leaves counts that user code could act upon: those named below, and those that nobody has
// named here yet (a newer processor's). Bits that only a kernel can use (paging, virtual machines,
// debug store, mitigations) don't: two nodes may differ in them freely.
//
// CPUID costs 20 to 70 us a leaf inside a virtual machine (each one exits to the hypervisor), so
// the bytes are kept.
#include "sys/cpuid.h"

#include <cpuid.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <span>

namespace godwit::sys {
namespace {

constexpr std::uint32_t xcr0_leaf = 0xffffffff;
constexpr std::uint32_t xsave_leaf = 0xd;
constexpr std::uint32_t xsave_first_extended = 2;  // x87 and SSE are where FXSAVE has them.
constexpr std::uint32_t xsave_pkru = 9;
constexpr std::uint32_t xsave_tile_data = 18;
constexpr std::uint32_t xsave_header_bytes = 64;
constexpr std::uint32_t xsave_parts_max = 32;
constexpr std::uint32_t fxsave_bytes =
    512;  // Then the header, whose first word says what is in use.
constexpr std::uint8_t format_version = 1;
constexpr std::size_t records_max = 64;
enum Register { eax, ebx, ecx, edx };

struct Record {
  std::uint32_t leaf = 0;
  std::uint32_t subleaf = 0;
  std::array<std::uint32_t, 4> registers{};
};
static_assert(sizeof(Record) == 24, "the packed form");

// One register of features: its 32 bits' names from 0 on, eight a line. "-": for kernels only; "?":
// no name known, counts.
struct Word {
  std::uint32_t leaf;
  std::uint32_t subleaf;
  Register which;
  std::string_view names;

  constexpr std::string_view name(int bit) const {
    std::string_view rest = names;
    for (; bit > 0; --bit) rest.remove_prefix(rest.find(' ') + 1);
    return rest.substr(0, rest.find(' '));
  }
};

// Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E.
constexpr Word words[] = {
    {1, 0, ecx,
     "sse3 pclmulqdq - - - - - - "
     "- ssse3 - - fma cx16 - - "
     "? - - sse4_1 sse4_2 - movbe popcnt "
     "- aes xsave osxsave avx f16c rdrand -"},
    {1, 0, edx,
     "fpu - - - tsc - - - "
     "cx8 - ? sep - - - cmov "
     "- - - clflush ? - - mmx "
     "fxsr sse sse2 - - - ? -"},
    {7, 0, ebx,
     "fsgsbase - sgx bmi1 hle avx2 - - "
     "bmi2 erms - rtm - - mpx - "
     "avx512f avx512dq rdseed adx - avx512ifma ? clflushopt "
     "clwb - avx512pf avx512er avx512cd sha avx512bw avx512vl"},
    {7, 0, ecx,
     "prefetchwt1 avx512vbmi - pku ospke waitpkg avx512vbmi2 shstk "
     "gfni vaes vpclmulqdq avx512vnni avx512bitalg - avx512vpopcntdq ? "
     "- - - - - - rdpid - "
     "- cldemote ? movdiri movdir64b enqcmd - -"},
    {7, 0, edx,
     "? - avx512_4vnniw avx512_4fmaps fsrm uintr ? ? "
     "avx512vp2intersect - - - ? - serialize - "
     "tsxldtrk ? - - ibt ? amx_bf16 avx512fp16 "
     "amx_tile amx_int8 - - - - - -"},
    {7, 1, eax,
     "sha512 sm3 sm4 rao_int avx_vnni avx512bf16 - cmpccxadd "
     "- ? fzrm fsrs fsrc ? ? ? "
     "? - - - ? amx_fp16 - avx_ifma "
     "? ? - - ? ? ? movrs"},
    {7, 1, edx,
     "? ? ? ? avx_vnni_int8 avx_ne_convert ? ? "
     "amx_complex ? avx_vnni_int16 ? ? ? prefetchi ? "
     "? - - avx10 ? apx_f ? ? "
     "? ? ? ? ? ? ? ?"},
    {0xd, 1, eax,
     "xsaveopt xsavec xgetbv1 - xfd ? ? ? "
     "? ? ? ? ? ? ? ? "
     "? ? ? ? ? ? ? ? "
     "? ? ? ? ? ? ? ?"},
    {0x80000001, 0, ecx,
     "lahf_lm - - - - lzcnt sse4a misalignsse "
     "prefetchw - - xop - - ? - "
     "fma4 - ? ? ? tbm - - "
     "- ? - - - mwaitx - -"},
    {0x80000001, 0, edx,
     "- - - - - - - - "
     "- - - syscall - - - - "
     "- - - - - - mmxext - "
     "- - - rdtscp ? lm 3dnowext 3dnow"},
    {0x80000008, 0, ebx,
     "clzero - - - rdpru - - - "
     "- - - - - - - - "
     "- - - - - - - - "
     "- - - - - - - -"},
    {xcr0_leaf, 0, eax,
     "xstate:x87 xstate:sse xstate:avx xstate:bndregs xstate:bndcsr xstate:opmask xstate:zmm_hi256 "
     "xstate:hi16_zmm "
     "- xstate:pkru xstate:pasid xstate:cet_u - - xstate:uintr - "
     "- xstate:xtilecfg xstate:xtiledata xstate:apx ? ? ? ? "
     "? ? ? ? ? ? ? ?"},
};

static_assert(std::all_of(std::begin(words), std::end(words), [](const Word& word) {
  return std::count(word.names.begin(), word.names.end(), ' ') == 31;
}));

std::optional<Record> query(std::uint32_t leaf, std::uint32_t subleaf) {
  Record record{leaf, subleaf, {}};
  auto& r = record.registers;
  if (__get_cpuid_count(leaf, subleaf, &r[eax], &r[ebx], &r[ecx], &r[edx]) == 0)
    return std::nullopt;
  return record;
}

std::uint64_t read_xcr0() {
  auto leaf1 = query(1, 0);
  if (!leaf1 || (leaf1->registers[ecx] & bit_OSXSAVE) == 0) return 3;  // x87 and SSE by FXSAVE.
  std::uint32_t low = 0;
  std::uint32_t high = 0;
  // The intrinsic needs -mxsave for the whole file.
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return std::uint64_t{high} << 32 | low;
}

std::string pack(std::span<const Record> records) {
  INVARIANT(records.size() <= records_max);
  std::string packed;
  packed.push_back(static_cast<char>(format_version));
  packed.push_back(static_cast<char>(records.size()));
  packed.append(reinterpret_cast<const char*>(records.data()), records.size() * sizeof(Record));
  return packed;
}

Result<std::vector<Record>> unpack(std::string_view packed) {
  if (packed.size() < 2 || packed[0] != format_version ||
      packed.size() != 2 + static_cast<unsigned char>(packed[1]) * sizeof(Record))
    return make_error(Errc::invalid, "{} bytes are no CPU features", packed.size());
  std::vector<Record> records(static_cast<unsigned char>(packed[1]));
  if (records.size() > records_max)
    return make_error(Errc::invalid, "CPU features of {} leaves", records.size());
  for (std::size_t i = 0; i < records.size(); ++i)
    std::memcpy(&records[i], packed.data() + 2 + i * sizeof(Record), sizeof(Record));
  return records;
}

const Record* find(std::span<const Record> records, std::uint32_t leaf, std::uint32_t subleaf) {
  for (const Record& record : records)
    if (record.leaf == leaf && record.subleaf == subleaf) return &record;
  return nullptr;
}

std::uint32_t value_of(std::span<const Record> records, const Word& word) {
  const Record* record = find(records, word.leaf, word.subleaf);
  return record != nullptr ? record->registers[word.which] : 0;
}

std::string describe(const Word& word, int bit) {
  std::string_view name = word.name(bit);
  if (name != "?") return std::string(name);
  constexpr const char* registers[] = {"eax", "ebx", "ecx", "edx"};
  return fmt::format("leaf {:x}.{} {} bit {}", word.leaf, word.subleaf, registers[word.which], bit);
}

// Names of the bits that are in `records` and not in `without`.
std::vector<std::string> names(std::span<const Record> records, std::span<const Record> without) {
  std::vector<std::string> found;
  for (const Word& word : words) {
    std::uint32_t bits = value_of(records, word) & ~value_of(without, word);
    for (int bit = 0; bit < 32; ++bit) {
      if ((bits >> bit & 1) != 0 && word.name(bit) != "-") found.push_back(describe(word, bit));
    }
  }
  return found;
}

// Where each part of the XSAVE area is. Signal frames have that form in the program's own memory,
// so a part that both have must be at the same place (processors of Intel and AMD differ in it).
void add_layout(std::uint64_t xcr0, std::vector<Record>& records) {
  for (std::uint32_t part = xsave_first_extended; part < xsave_parts_max; ++part) {
    if ((xcr0 >> part & 1) == 0) continue;
    if (std::optional<Record> record = query(xsave_leaf, part)) records.push_back(*record);
  }
}

constexpr Word parts = words[std::size(words) - 1];
static_assert(parts.leaf == xcr0_leaf);

std::string part_name(std::uint32_t part) { return describe(parts, static_cast<int>(part)); }

void compare_layout(std::span<const Record> source, std::span<const Record> target,
                    std::vector<std::string>& found) {
  for (std::uint32_t part = xsave_first_extended; part < xsave_parts_max; ++part) {
    const Record* from = find(source, xsave_leaf, part);
    const Record* to = find(target, xsave_leaf, part);
    if (from == nullptr || to == nullptr) continue;
    if (from->registers[eax] == to->registers[eax] && from->registers[ebx] == to->registers[ebx])
      continue;
    found.push_back(fmt::format("{} of {} bytes at {} of the XSAVE area (there: {} at {})",
                                part_name(part), from->registers[eax], from->registers[ebx],
                                to->registers[eax], to->registers[ebx]));
  }
}

}  // namespace

namespace {

std::string ask_features() {
  std::vector<Record> records;
  for (const Word& word : words) {
    if (word.leaf == xcr0_leaf) continue;
    bool known = std::any_of(records.begin(), records.end(), [&](const Record& record) {
      return record.leaf == word.leaf && record.subleaf == word.subleaf;
    });
    if (known) continue;
    std::optional<Record> record = query(word.leaf, word.subleaf);
    if (!record) continue;
    // Its own number, among others: differs between the processors of one machine.
    if (word.leaf == 1) record->registers[ebx] = 0;
    records.push_back(*record);
  }
  std::uint64_t xcr0 = read_xcr0();
  records.push_back(
      {xcr0_leaf,
       0,
       {static_cast<std::uint32_t>(xcr0), 0, 0, static_cast<std::uint32_t>(xcr0 >> 32)}});
  add_layout(xcr0, records);
  return pack(records);
}

}  // namespace

const std::string& cpu_features() {
  static const std::string features = ask_features();
  return features;
}

Result<std::vector<std::string>> missing_features(std::string_view source,
                                                  std::string_view target) {
  std::vector<Record> from = TRY(unpack(source).with("source"));
  std::vector<Record> to = TRY(unpack(target).with("target"));
  std::vector<std::string> found = names(from, to);
  compare_layout(from, to, found);
  return found;
}

Result<std::vector<std::string>> moved_xsave_parts(std::string_view source,
                                                   std::string_view target) {
  std::vector<std::string> found;
  std::vector<Record> from = TRY(unpack(source).with("source"));
  std::vector<Record> to = TRY(unpack(target).with("target"));
  compare_layout(from, to, found);
  return found;
}

Result<std::vector<std::string>> drop_unknown_xstate(std::string& xstate, std::string_view source,
                                                     std::string_view target) {
  std::vector<Record> from = TRY(unpack(source).with("source"));
  const std::uint32_t known = value_of(TRY(unpack(target).with("target")), parts);
  std::uint64_t in_use = 0;
  if (xstate.size() < fxsave_bytes + sizeof in_use) return std::vector<std::string>();
  std::memcpy(&in_use, &xstate[fxsave_bytes], sizeof in_use);
  std::vector<std::string> lost;
  for (std::uint32_t part = xsave_first_extended; part < xsave_parts_max; ++part) {
    const Record* record = find(from, xsave_leaf, part);
    if ((in_use >> part & 1) == 0 || (known >> part & 1) != 0) continue;
    if (record == nullptr ||
        std::uint64_t{record->registers[ebx]} + record->registers[eax] > xstate.size())
      return make_error(Errc::internal, "{} is outside of {} bytes of registers", part_name(part),
                        xstate.size());
    std::span<char> content(&xstate[record->registers[ebx]], record->registers[eax]);
    // Without protection keys (which no mapping has, or it would be refused) their rights say
    // nothing.
    const bool empty = std::all_of(content.begin(), content.end(), [](char c) { return c == 0; });
    if (!empty && part != xsave_pkru) lost.push_back(part_name(part));
    std::fill(content.begin(), content.end(), '\0');
    in_use &= ~(std::uint64_t{1} << part);
  }
  std::memcpy(&xstate[fxsave_bytes], &in_use, sizeof in_use);
  return lost;
}

Result<std::string> without_features(std::string_view features,
                                     const std::vector<std::string>& hidden) {
  std::vector<Record> records = TRY(unpack(features));
  for (const std::string& name : hidden) {
    bool known = false;
    for (const Word& word : words) {
      for (int bit = 0; bit < 32; ++bit) {
        if (word.name(bit) == "-" || describe(word, bit) != name) continue;
        known = true;
        for (Record& record : records) {
          if (record.leaf == word.leaf && record.subleaf == word.subleaf)
            record.registers[word.which] &= ~(1u << bit);
        }
      }
    }
    if (!known) return make_error(Errc::invalid, "there is no processor feature {}", name);
  }
  return pack(records);
}

Result<std::vector<std::string>> feature_names(std::string_view features) {
  return names(TRY(unpack(features)), {});
}

std::uint32_t xsave_bytes() {
  auto record = query(0xd, 0);
  return record ? record->registers[ebx] : fxsave_bytes;
}

Result<std::uint32_t> signal_xsave_bytes(std::string_view features) {
  std::uint32_t end = fxsave_bytes + xsave_header_bytes;
  for (const Record& record : TRY(unpack(features))) {
    if (record.leaf != xsave_leaf || record.subleaf < xsave_first_extended) continue;
    if (record.subleaf == xsave_tile_data) continue;
    end = std::max(end, record.registers[ebx] + record.registers[eax]);
  }
  return end;
}

std::string cpu_model() {
  std::string model;
  for (std::uint32_t leaf = 0x80000002; leaf <= 0x80000004; ++leaf) {
    auto record = query(leaf, 0);
    if (!record) return "unknown";
    model.append(reinterpret_cast<const char*>(record->registers.data()), 16);
  }
  model = model.c_str();  // Ends at the first NUL.
  model.erase(0, model.find_first_not_of(' '));
  model.erase(model.find_last_not_of(' ') + 1);
  return model;
}

}  // namespace godwit::sys
