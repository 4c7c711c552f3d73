#include "sys/remote_code.h"

#include <initializer_list>

#include "base/result.h"

namespace godwit::sys::remote_code {
namespace {

// How often a guarded thread looks whether it may go on before it goes home: one to three seconds.
constexpr std::uint32_t looks_max = 1 << 25;

class Assembler {
 public:
  std::size_t here() const { return sizeof(Header) + out_.size(); }
  std::vector<std::byte> take() { return std::move(out_); }

  void emit(std::initializer_list<unsigned> bytes) {
    for (unsigned b : bytes) out_.push_back(static_cast<std::byte>(b));
  }
  void word(std::uint32_t value) {
    for (unsigned i = 0; i < 4; ++i) emit({(value >> (8 * i)) & 0xff});
  }
  // An instruction whose last four bytes are the distance of a place from its end.
  void relative(std::initializer_list<unsigned> bytes, std::size_t place) {
    emit(bytes);
    word(static_cast<std::uint32_t>(place) - static_cast<std::uint32_t>(here() + 4));
  }
  // A short jump backwards.
  void back(unsigned op, std::size_t place) {
    const std::size_t distance = here() + 2 - place;
    INVARIANT(distance <= 128, "a jump over {} bytes", distance);
    emit({op, static_cast<unsigned>(256 - distance) & 0xff});
  }
  // A short jump forwards; the answer is for land().
  std::size_t forward(unsigned op) {
    emit({op, 0});
    return out_.size();
  }
  void land(std::size_t jump) {
    INVARIANT(out_.size() - jump < 128);
    out_[jump - 1] = static_cast<std::byte>(out_.size() - jump);
  }

 private:
  std::vector<std::byte> out_;
};

constexpr unsigned jmp = 0xeb, jrcxz = 0xe3;

// Loads the arguments of the entry at rbx, and its number plus one, which is in rcx.
void load_call(Assembler& a) {
  a.emit({0x48, 0x8d, 0x41, 0xff});  // lea -1(%rcx),%rax
  a.emit({0x48, 0x8b, 0x7b, 0x08});  // mov 8(%rbx),%rdi
  a.emit({0x48, 0x8b, 0x73, 0x10});  // mov 16(%rbx),%rsi
  a.emit({0x48, 0x8b, 0x53, 0x18});  // mov 24(%rbx),%rdx
  a.emit({0x4c, 0x8b, 0x53, 0x20});  // mov 32(%rbx),%r10
  a.emit({0x4c, 0x8b, 0x43, 0x28});  // mov 40(%rbx),%r8
  a.emit({0x4c, 0x8b, 0x4b, 0x30});  // mov 48(%rbx),%r9
}

void store_and_next(Assembler& a) {
  a.emit({0x48, 0x89, 0x43, 0x38});  // mov %rax,56(%rbx)
  a.emit({0x48, 0x8d, 0x5b, 0x40});  // lea 64(%rbx),%rbx
}

// Ten times `mov field(%rip),%reg`, then `jmp *rip_field(%rip)`.
void restore_registers(Assembler& a) {
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
  for (const auto& load : loads) a.relative({load.rex, 0x8b, load.modrm}, load.field);
  a.relative({0xff, 0x25}, offsetof(Header, rip));
}

// One look of a waiting thread; when it has looked often enough it goes home. rcx, r8 are used.
void look_once_more(Assembler& a, std::size_t restore) {
  a.emit({0x49, 0x8d, 0x48, 0xff});  // lea -1(%r8),%rcx
  a.emit({0x49, 0x89, 0xc8});        // mov %rcx,%r8
  const std::size_t home = a.forward(jrcxz);
  const std::size_t stay = a.forward(jmp);
  a.land(home);
  a.relative({0xe9}, restore);
  a.land(stay);
  a.emit({0xf3, 0x90});  // pause
}

void set_looks(Assembler& a) {
  a.emit({0x41, 0xb8});  // mov $looks,%r8d
  a.word(looks_max);
}

// Each call is made only while the deadline is in the future: `deadline - now - 1`, whose uppermost
// byte is zero then. Flags aren't touched: not, bswap and lea do it.
void guarded_part(Assembler& a, Code& c) {
  c.guarded = a.here();
  set_looks(a);
  const std::size_t again = a.here();
  look_once_more(a, c.restore);
  a.emit({0x48, 0x8b, 0x0b});              // mov (%rbx),%rcx
  a.back(jrcxz, again);                    // the end: wait for the tracer
  a.emit({0x0f, 0x31});                    // rdtsc
  a.emit({0x0f, 0xca, 0x48, 0x0f, 0xca});  // bswap %edx; bswap %rdx: shifted by 32
  a.emit({0x48, 0x8d, 0x0c, 0x02});        // lea (%rdx,%rax),%rcx
  a.emit({0x48, 0xf7, 0xd1});              // not %rcx
  a.relative({0x48, 0x8b, 0x05}, offsetof(Header, deadline));  // mov deadline(%rip),%rax
  a.emit({0x48, 0x8d, 0x0c, 0x08});                            // lea (%rax,%rcx),%rcx
  a.emit({0x48, 0x0f, 0xc9, 0x0f, 0xb6, 0xc9});                // bswap %rcx; movzbl %cl,%ecx
  const std::size_t in_time = a.forward(jrcxz);
  a.back(jmp, again);
  a.land(in_time);
  a.emit({0x48, 0x8b, 0x0b});  // mov (%rbx),%rcx
  load_call(a);
  c.guarded_syscall = a.here();
  a.emit({0x0f, 0x05});                               // syscall
  a.relative({0xff, 0x25}, offsetof(Header, after));  // jmp *after(%rip)
  c.store = a.here();
  store_and_next(a);
  c.stored = c.store + 4;
  a.back(jmp, c.guarded);
  c.hold = a.here();
  set_looks(a);
  const std::size_t hold_on = a.here();
  look_once_more(a, c.restore);
  a.back(jmp, hold_on);
}

Code assemble() {
  Assembler a;
  Code c;
  c.boot = a.here();
  a.emit({0x0f, 0x05});  // syscall
  const std::size_t booted = a.forward(jmp);
  c.loop = a.here();
  a.emit({0x48, 0x8b, 0x0b});  // mov (%rbx),%rcx
  const std::size_t through = a.forward(jrcxz);
  load_call(a);
  c.loop_syscall = a.here();
  a.emit({0x0f, 0x05});  // syscall
  store_and_next(a);
  a.back(jmp, c.loop);
  a.land(booted);
  a.land(through);
  c.restore = a.here();
  restore_registers(a);
  guarded_part(a, c);
  while (a.here() % sizeof(std::uint64_t) != 0) a.emit({0});
  c.single = a.here();
  c.end = c.single + sizeof(Entry);
  c.bytes = a.take();
  c.bytes.resize(c.end - sizeof(Header));
  return c;
}

}  // namespace

const Code& injected_code() {
  static const Code assembled = assemble();
  return assembled;
}

}  // namespace godwit::sys::remote_code
