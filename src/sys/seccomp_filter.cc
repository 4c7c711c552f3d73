#include "sys/seccomp_filter.h"

#include <array>
#include <cstring>
#include <optional>

namespace godwit::sys {
namespace {

// One run of a classic BPF program, with the instructions that seccomp allows
// (seccomp_check_filter() in the kernel; unchanged since 3.5).
class Machine {
 public:
  explicit Machine(const seccomp_data& call) : call_(call) {}

  std::optional<std::uint32_t> run(std::span<const sock_filter> program) {
    for (std::size_t pc = 0; pc < program.size(); ++pc) {
      const sock_filter& i = program[pc];
      switch (BPF_CLASS(i.code)) {
        case BPF_RET:
          return BPF_RVAL(i.code) == BPF_A ? a_ : i.k;
        case BPF_JMP:
          pc += BPF_OP(i.code) == BPF_JA ? i.k : (holds(i) ? i.jt : i.jf);
          break;
        case BPF_ALU: {
          const std::uint32_t operand = BPF_SRC(i.code) == BPF_X ? x_ : i.k;
          if (BPF_OP(i.code) == BPF_DIV && operand == 0) return SECCOMP_RET_KILL_THREAD;
          if (!compute(BPF_OP(i.code), operand)) return std::nullopt;
          break;
        }
        default:
          if (!move(i)) return std::nullopt;
      }
    }
    return std::nullopt;  // Ran over its end.
  }

 private:
  bool holds(const sock_filter& i) const {
    const std::uint32_t operand = BPF_SRC(i.code) == BPF_X ? x_ : i.k;
    switch (BPF_OP(i.code)) {
      case BPF_JEQ:
        return a_ == operand;
      case BPF_JGT:
        return a_ > operand;
      case BPF_JGE:
        return a_ >= operand;
      default:  // BPF_JSET
        return (a_ & operand) != 0;
    }
  }

  bool compute(unsigned op, std::uint32_t operand) {
    switch (op) {
      case BPF_ADD:
        a_ += operand;
        return true;
      case BPF_SUB:
        a_ -= operand;
        return true;
      case BPF_MUL:
        a_ *= operand;
        return true;
      case BPF_DIV:
        a_ /= operand;
        return true;
      case BPF_AND:
        a_ &= operand;
        return true;
      case BPF_OR:
        a_ |= operand;
        return true;
      case BPF_XOR:
        a_ ^= operand;
        return true;
      case BPF_LSH:
        a_ <<= operand & 31;
        return true;
      case BPF_RSH:
        a_ >>= operand & 31;
        return true;
      case BPF_NEG:
        a_ = 0 - a_;
        return true;
      default:
        return false;
    }
  }

  bool move(const sock_filter& i) {
    switch (i.code) {
      case BPF_LD | BPF_W | BPF_ABS:
        if (i.k % 4 != 0 || i.k + 4 > sizeof call_) return false;
        std::memcpy(&a_, reinterpret_cast<const char*>(&call_) + i.k, sizeof a_);
        return true;
      case BPF_LD | BPF_W | BPF_LEN:
        a_ = sizeof call_;
        return true;
      case BPF_LDX | BPF_W | BPF_LEN:
        x_ = sizeof call_;
        return true;
      case BPF_LD | BPF_IMM:
        a_ = i.k;
        return true;
      case BPF_LDX | BPF_IMM:
        x_ = i.k;
        return true;
      case BPF_MISC | BPF_TAX:
        x_ = a_;
        return true;
      case BPF_MISC | BPF_TXA:
        a_ = x_;
        return true;
      default:
        break;
    }
    if (i.k >= memory_.size()) return false;
    switch (i.code) {
      case BPF_LD | BPF_MEM:
        a_ = memory_[i.k];
        return true;
      case BPF_LDX | BPF_MEM:
        x_ = memory_[i.k];
        return true;
      case BPF_ST:
        memory_[i.k] = a_;
        return true;
      case BPF_STX:
        memory_[i.k] = x_;
        return true;
      default:
        return false;
    }
  }

  const seccomp_data& call_;
  std::uint32_t a_ = 0, x_ = 0;
  std::array<std::uint32_t, BPF_MEMWORDS> memory_{};
};

// Signed: KILL_PROCESS is below everything.
std::int32_t severity(std::uint32_t verdict) {
  return static_cast<std::int32_t>(verdict & SECCOMP_RET_ACTION_FULL);
}

}  // namespace

std::uint32_t seccomp_verdict(std::span<const SeccompProgram> filters, const seccomp_data& call) {
  std::uint32_t worst = SECCOMP_RET_ALLOW;
  // Among equals that of the filter installed last counts.
  for (std::size_t i = filters.size(); i-- > 0;) {
    const std::uint32_t verdict =
        Machine(call).run(filters[i].instructions).value_or(SECCOMP_RET_KILL_PROCESS);
    if (severity(verdict) < severity(worst)) worst = verdict;
  }
  return worst;
}

}  // namespace godwit::sys
