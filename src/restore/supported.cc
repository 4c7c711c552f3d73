#include "restore/supported.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <google/protobuf/message.h>
#include <google/protobuf/unknown_field_set.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/auxv.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/user.h>

#include <cstring>
#include <map>
#include <set>

#include "sys/kernel_features.h"
#include "sys/protection_keys.h"

namespace godwit::restore {
namespace {

constexpr std::uint32_t image_version = 1;
// Numbers of files are indexes (map_plan.h). More mappings than this, each of a file of its own, no
// kernel allows by default.
constexpr std::uint32_t file_id_max = 1 << 20;

// Fields of a newer program: whatever they ask for wouldn't be done.
void find_unknown(const google::protobuf::Message& message, std::vector<std::string>& reasons) {
  const auto* reflection = message.GetReflection();
  const auto& unknown = reflection->GetUnknownFields(message);
  for (int i = 0; i < unknown.field_count(); ++i) {
    reasons.push_back(fmt::format("the image has field {} in {}, which this version doesn't know",
                                  unknown.field(i).number(), message.GetTypeName()));
  }
  std::vector<const google::protobuf::FieldDescriptor*> fields;
  reflection->ListFields(message, &fields);
  for (const auto* field : fields) {
    if (field->cpp_type() != google::protobuf::FieldDescriptor::CPPTYPE_MESSAGE) continue;
    if (!field->is_repeated()) {
      find_unknown(reflection->GetMessage(message, field), reasons);
      continue;
    }
    for (int i = 0, n = reflection->FieldSize(message, field); i < n; ++i) {
      find_unknown(reflection->GetRepeatedMessage(message, field, i), reasons);
    }
  }
}

void check_pending(const std::string& info, const std::string& whose,
                   std::vector<std::string>& reasons) {
  std::int32_t signal = 0;
  if (info.size() != siginfo_bytes) {
    reasons.push_back(fmt::format("{}: a pending signal of {} bytes", whose, info.size()));
    return;
  }
  std::memcpy(&signal, info.data(), sizeof signal);
  if (signal == SIGTRAP) reasons.push_back(whose + ": a pending SIGTRAP");
}

std::uint64_t auxv_value(const std::string& auxv, std::uint64_t type) {
  for (std::size_t at = 0; at + 16 <= auxv.size(); at += 16) {
    std::uint64_t pair[2];
    std::memcpy(pair, auxv.data() + at, sizeof pair);
    if (pair[0] == type) return pair[1];
  }
  return 0;
}

// A signal frame holds the processor's XSAVE area. Where that is larger than where the program
// began, the kernel would kill it at the first signal for which its alternate stack is too small.
void check_alternate_stack(const image::Mm& mm, const image::Thread& t,
                           std::vector<std::string>& reasons) {
  constexpr std::uint64_t at_minsigstksz = 51;
  if (t.altstack_sp() == 0 || (t.altstack_flags() & SS_DISABLE) != 0) return;
  const std::uint64_t needed_there = auxv_value(mm.auxv(), at_minsigstksz);
  const std::uint64_t needed_here = ::getauxval(at_minsigstksz);
  if (needed_there == 0 || t.altstack_size() < needed_there || t.altstack_size() >= needed_here)
    return;
  reasons.push_back(
      fmt::format("thread {} has an alternate signal stack of {} bytes, this processor needs {}",
                  t.tid(), t.altstack_size(), needed_here));
}

void check_thread(const image::Thread& t, std::vector<std::string>& reasons) {
  std::string whose = fmt::format("thread {}", t.tid());
  if (t.regs().size() != sizeof(user_regs_struct)) {
    reasons.push_back(fmt::format("{}: registers of {} bytes", whose, t.regs().size()));
  }
  if (t.syscall_dispatch() != 0) reasons.push_back(whose + ": syscall user dispatch");
  if (t.seccomp_mode() > SECCOMP_MODE_FILTER) reasons.push_back(whose + ": unknown seccomp mode");
  if (t.seccomp_mode() == SECCOMP_MODE_FILTER && t.seccomp_filters_size() == 0) {
    reasons.push_back(whose + ": a seccomp filter that the image lacks");
  }
  for (const image::SeccompFilter& f : t.seccomp_filters()) {
    constexpr std::uint32_t known = SECCOMP_FILTER_FLAG_LOG | SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    if ((f.flags() & ~known) != 0) {
      reasons.push_back(fmt::format("{}: seccomp filter with flags {:#x}", whose, f.flags()));
    }
  }
  for (const std::string& info : t.pending()) check_pending(info, whose, reasons);
}

void check_vmas(const image::Mm& mm, std::vector<std::string>& reasons) {
  for (const image::FileRef& file : mm.mapped()) {
    if (file.id() == 0 || file.id() > file_id_max)
      reasons.push_back(fmt::format("mapped file {}: number {}", file.path(), file.id()));
  }
  std::uint64_t end = 0;
  for (const image::Vma& v : mm.vmas()) {
    auto bad = [&](const char* what) {
      reasons.push_back(fmt::format("mapping {:#x}: {}", v.start(), what));
    };
    if (v.start() >= v.end() || v.start() < end || ((v.start() | v.end()) & 4095) != 0)
      bad("out of order");
    end = v.end();
    if (v.pkey() != 0 && !sys::is_execute_only_key(v.pkey(), v.prot())) bad("a protection key");
    if ((v.flags() & image::VMA_SEALED) != 0) bad("mseal");
    if (v.kind() == image::Vma::SHARED_ANON && v.shmem() == 0)
      bad("shared memory without an object");
    if (v.kind() == image::Vma::ANON && v.shared()) bad("anonymous and shared");
    constexpr std::uint64_t known = (image::VMA_MAYWRITE << 1) - 1;
    if ((v.flags() & ~known) != 0) bad("unknown flags");
  }
}

// What the source's kernel has and this one hasn't. The source asks before it freezes; what a
// program begins to use after that comes to light here.
std::uint64_t kernel_needs(const image::Capsule& capsule) {
  constexpr std::uint32_t seal_exec = 0x20;  // F_SEAL_EXEC
  std::uint64_t needs = 0;
  for (const image::PrivateFile& file : capsule.private_files())
    if ((file.seals() & seal_exec) != 0) needs |= sys::kernel_exec_seal;
  for (const image::Process& p : capsule.processes()) {
    if (p.mdwe() != 0) needs |= sys::kernel_mdwe;
    if (p.memory_merge()) needs |= sys::kernel_memory_merge;
    for (const image::Thread& t : p.threads())
      if (t.rseq_size() > sys::rseq_bytes_always) needs |= sys::kernel_large_rseq;
  }
  return needs;
}

void check_process(const image::Process& p, bool final, std::vector<std::string>& reasons) {
  std::string whose = fmt::format("process {}", p.pid());
  if (p.threads_size() == 0 || p.threads(0).tid() != p.pid())
    reasons.push_back(whose + ": no leader");
  if (p.exit_signal() != SIGCHLD && p.exit_signal() != 0) {
    reasons.push_back(fmt::format("{}: exit signal {}", whose, p.exit_signal()));
  }
  if (p.cwd_private_file() != 0)
    reasons.push_back(whose + ": a private working directory by number");
  const int stop = p.stop_signal();
  if (stop != 0 && stop != SIGSTOP && stop != SIGTSTP && stop != SIGTTIN && stop != SIGTTOU)
    reasons.push_back(fmt::format("{}: stopped by signal {}", whose, stop));
  check_vmas(p.mm(), reasons);
  for (const std::string& info : p.pending()) check_pending(info, whose, reasons);
  if (!final) return;
  for (const image::Thread& t : p.threads()) {
    check_thread(t, reasons);
    check_alternate_stack(p.mm(), t, reasons);
  }
}

bool is_unix_name(const std::string& name) {
  sa_family_t family = AF_UNSPEC;
  if (name.size() < sizeof family) return name.empty();
  std::memcpy(&family, name.data(), sizeof family);
  // One that fills all of sun_path is told with a NUL behind it.
  return family == AF_UNIX && name.size() <= sizeof(sockaddr_un) + 1;
}

// Who is connected to whom must be as sockets can be; see restore/unix_sockets.cc.
class UnixSocketCheck {
 public:
  UnixSocketCheck(const image::Capsule& capsule, std::vector<std::string>& reasons)
      : reasons_(reasons) {
    for (const image::OpenFile& file : capsule.files()) files_.insert(file.id());
    for (const image::Socket& socket : capsule.sockets()) {
      if (!sockets_.emplace(socket.id(), &socket).second) bad(socket, "another has its number");
    }
  }

  void check(const image::Socket& socket) {
    const image::UnixSocket& end = socket.unix_end();
    const bool datagrams = socket.type() == SOCK_DGRAM;
    if (!datagrams && socket.type() != SOCK_STREAM && socket.type() != SOCK_SEQPACKET)
      bad(socket, "an unknown type");
    if (!is_unix_name(socket.local()) || !is_unix_name(socket.peer())) bad(socket, "a name");
    if ((end.peer() != 0) + end.peer_gone() + end.peer_outside() + (end.accepted_of() != 0) > 1 ||
        (end.peer_outside() && !datagrams) || (end.accepted_of() != 0 && datagrams) ||
        (socket.listening() && (datagrams || end.peer() != 0 || end.peer_gone())))
      bad(socket, "several kinds of connection");
    const image::Socket* peer = find(socket, end.peer());
    if (peer != nullptr && !datagrams &&
        (peer == &socket || peer->unix_end().peer() != socket.id() || peer->listening()))
      bad(socket, "a peer that is connected to somebody else");
    if (const image::Socket* listener = find(socket, end.accepted_of());
        listener != nullptr && !listener->listening())
      bad(socket, "waits to be accepted where nobody listens");
    for (const image::Message& message : socket.queue()) check(socket, message);
  }

 private:
  static constexpr int descriptors_max = 253;  // SCM_MAX_FD

  void check(const image::Socket& socket, const image::Message& message) {
    if (!is_unix_name(message.from())) bad(socket, "a message from a name");
    if (message.files_size() > descriptors_max) bad(socket, "a message with too many descriptors");
    for (std::uint32_t file : message.files())
      if (!files_.contains(file)) bad(socket, "a message with an open file that isn't there");
  }

  const image::Socket* find(const image::Socket& socket, std::uint32_t id) {
    if (id == 0) return nullptr;
    auto found = sockets_.find(id);
    if (found != sockets_.end() && found->second->family() == AF_UNIX &&
        found->second->type() == socket.type())
      return found->second;
    bad(socket, "a peer that isn't there");
    return nullptr;
  }

  void bad(const image::Socket& socket, const char* what) {
    reasons_.push_back(fmt::format("Unix socket {}: {}", socket.id(), what));
  }

  std::vector<std::string>& reasons_;
  std::set<std::uint32_t> files_;
  std::map<std::uint32_t, const image::Socket*> sockets_;
};

}  // namespace

std::vector<std::string> reasons_against(const image::Capsule& capsule, bool final) {
  std::vector<std::string> reasons;
  if (capsule.version() != image_version) {
    reasons.push_back(
        fmt::format("image version {}, this is version {}", capsule.version(), image_version));
  }
  if (capsule.processes_size() == 0) reasons.push_back("no processes");
  for (const image::Process& p : capsule.processes()) check_process(p, final, reasons);
  for (const image::Zombie& z : capsule.zombies())
    if ((z.wait_status() & ~0xffff) != 0 || (z.wait_status() & 0x7f) > SIGRTMAX)
      reasons.push_back(fmt::format("zombie {}: wait status {:#x}", z.pid(), z.wait_status()));
  UnixSocketCheck unix_sockets(capsule, reasons);
  for (const image::Socket& socket : capsule.sockets())
    if (socket.family() == AF_UNIX) unix_sockets.check(socket);
  for (const std::string& feature :
       sys::kernel_feature_names(kernel_needs(capsule) & ~sys::kernel_features()))
    reasons.push_back("the program uses what this kernel lacks: " + feature);
  // A reflective walk of 60,000 mappings costs 40 ms: unknown fields come with a new version of the
  // program, so the image before the freeze shows them as well.
  if (!final) find_unknown(capsule, reasons);
  return reasons;
}

Result<void> check_supported(const image::Capsule& capsule, bool final) {
  std::vector<std::string> reasons = reasons_against(capsule, final);
  if (reasons.empty()) return {};
  return make_error(Errc::unsupported, "can't restore: {}", fmt::join(reasons, "; "));
}

}  // namespace godwit::restore
