#include "sys/remote_code.h"

#include <initializer_list>

#include "base/result.h"

namespace godwit::sys::remote_code {
namespace {

// clang-format off
constexpr unsigned char code_before_restore[] = {
    0x0f, 0x05,                    // boot: syscall
    0xeb, 45,                      //       jmp restore
    0x48, 0x8b, 0x0b,              // loop: mov (%rbx),%rcx         number of the call + 1, or 0
    0xe3, 40,                      //       jrcxz restore
    0x48, 0x8d, 0x41, 0xff,        //       lea -1(%rcx),%rax
    0x48, 0x8b, 0x7b, 0x08,        //       mov 8(%rbx),%rdi
    0x48, 0x8b, 0x73, 0x10,        //       mov 16(%rbx),%rsi
    0x48, 0x8b, 0x53, 0x18,        //       mov 24(%rbx),%rdx
    0x4c, 0x8b, 0x53, 0x20,        //       mov 32(%rbx),%r10
    0x4c, 0x8b, 0x43, 0x28,        //       mov 40(%rbx),%r8
    0x4c, 0x8b, 0x4b, 0x30,        //       mov 48(%rbx),%r9
    0x0f, 0x05,                    //       syscall
    0x48, 0x89, 0x43, 0x38,        //       mov %rax,56(%rbx)
    0x48, 0x8d, 0x5b, 0x40,        //       lea 64(%rbx),%rbx
    0xeb, 0xd3,                    //       jmp loop
};
// clang-format on
constexpr std::size_t restore_offset = boot_offset + sizeof code_before_restore;
constexpr std::size_t restore_bytes = 10 * 7 + 6;
static_assert(code_bytes == restore_offset + restore_bytes);
// The jumps above are relative to the end of their instruction.
static_assert(boot_offset + 4 + 45 == restore_offset);
static_assert(loop_offset + 5 + 40 == restore_offset);
static_assert(restore_offset + 0xd3 - 0x100 == loop_offset);
static_assert(code_before_restore[loop_syscall - boot_offset] == 0x0f);

}  // namespace

// Ten times `mov field(%rip),%reg`, then `jmp *rip_field(%rip)`.
std::vector<std::byte> assemble() {
  std::vector<std::byte> out;
  auto emit = [&](std::initializer_list<unsigned> bytes) {
    for (unsigned b : bytes) out.push_back(static_cast<std::byte>(b));
  };
  auto displacement = [&](std::size_t field) {
    // Relative to the end of the instruction, whose last four bytes these are.
    auto d =
        static_cast<std::int32_t>(field) - static_cast<std::int32_t>(boot_offset + out.size() + 4);
    for (int i = 0; i < 4; ++i) out.push_back(static_cast<std::byte>((d >> (8 * i)) & 0xff));
  };
  for (unsigned char b : code_before_restore) out.push_back(static_cast<std::byte>(b));
  const struct {
    unsigned rex, modrm;
    std::size_t field;
  } loads[] = {
      {0x48, 0x05, offsetof(Header, rax)}, {0x48, 0x1d, offsetof(Header, rbx)},
      {0x48, 0x0d, offsetof(Header, rcx)}, {0x48, 0x15, offsetof(Header, rdx)},
      {0x48, 0x35, offsetof(Header, rsi)}, {0x48, 0x3d, offsetof(Header, rdi)},
      {0x4c, 0x05, offsetof(Header, r8)},  {0x4c, 0x0d, offsetof(Header, r9)},
      {0x4c, 0x15, offsetof(Header, r10)}, {0x4c, 0x1d, offsetof(Header, r11)},
  };
  for (auto& load : loads) {
    emit({load.rex, 0x8b, load.modrm});
    displacement(load.field);
  }
  emit({0xff, 0x25});
  displacement(offsetof(Header, rip));
  INVARIANT(out.size() + boot_offset == code_bytes, "{} bytes of code", out.size());
  return out;
}

}  // namespace godwit::sys::remote_code
