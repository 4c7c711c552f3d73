// The order of finish(), and why:
//
//   mappings (done by prepare_final)     the final image only moves what changed since
//   time namespace, threads              done early unless the clocks weren't known; setns needs a
//                                        single thread
//   private files: size, owner, times    before they are opened
//   descriptors, terminal                before /proc/self/exe and timers: numbers must be free
//   process state                        handlers before pending signals: setting a handler to
//   ignore
//                                        flushes the queue
//   locks                                after the content, since locking populates
//   threads other than the leader        all at once, a lane of the arena each; credentials last
//   the leader                           last of all: each change of credentials resets `dumpable`
//   interrupted calls                    nothing may be executed by a thread after it
//   our areas go                         by a `syscall` instruction of the vdso
//   registers, XSTATE, signal masks      after which nothing is left to do but to detach
#include "restore/restorer.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include <algorithm>
#include <cstdlib>
#include <optional>

#include "base/clock.h"
#include "restore/address_space.h"
#include "restore/family.h"
#include "restore/open_files.h"
#include "restore/private_files.h"
#include "restore/process_state.h"
#include "restore/restart.h"
#include "restore/skeleton.h"
#include "restore/supported.h"
#include "restore/thread_state.h"
#include "sys/proc.h"
#include "sys/tracing.h"

namespace godwit::restore {
namespace {

constexpr std::uint32_t private_file_bit = 0x8000'0000;
constexpr unsigned threads_at_once = Arena::lanes_max - 1;
// How far the capsule's clocks may be behind the source's at the freeze. More means that somebody
// told us nonsense.
constexpr std::int64_t clock_wait_ns_max = 1'000'000'000;
constexpr std::int64_t raw_jump_ns_min = 1'000'000;  // What is worth a note.
constexpr std::int64_t tick_wait_ns_max = 20'000'000, tick_look_ns = 50'000;

}  // namespace

struct Restorer::Impl {
  struct Process {
    Process(Skeleton s, AddressSpace::OpenFile open)
        : skeleton(std::move(s)), memory(skeleton, std::move(open)) {}
    Skeleton skeleton;
    AddressSpace memory;
    bool in_time_namespace = false;
    std::uint32_t membarrier_done = 0;
    std::vector<sys::Regs> regs;  // Final ones, by thread.
    struct Sleep {
      pid_t node_tid;
      sys::InterruptedSleep sleep;
    };
    std::vector<Sleep> sleeps;
    int seccomp_shared_count = 0;
  };

  Impl(SkeletonSource& s, UniqueFd root_fd)
      : source(s),
        root(std::move(root_fd)),
        private_files(root.get()),
        files(s, root.get(), private_files) {}

  Result<void> build(const image::Capsule& image, bool final);
  Result<void> follow_family(const image::Capsule& image);
  Result<void> take(const FamilyStep& step, const image::Capsule& image);
  Result<void> fork(const FamilyStep& step, const image::Capsule& image);
  Result<void> end_zombie(Skeleton& skeleton, const image::Capsule& image);
  Result<void> enter_time_namespace(Process& process);
  Result<void> wait_for_clocks(const image::Clocks& clocks) const;
  void note_raw_clock(const image::Clocks& clocks);
  void wait_for_tick() const;
  Result<void> set_threads(Process& process, const image::Process& image);
  Result<void> finish_process(Process& process, const image::Process& image,
                              const image::Capsule& capsule, std::int64_t frozen_ns);
  Result<void> restore_threads(Process& process, const image::Process& image);
  Result<void> restore_leader(Process& process, const image::Process& image,
                              const image::Capsule& capsule);
  Result<void> stop(Process& process, const image::Process& image);
  Result<void> restart_calls(Process& process, const image::Process& image, std::int64_t frozen_ns);
  Result<void> set_contexts(const Process& process, const image::Process& image);
  ThreadContext context(const Process& process, const image::Process& image, int thread) const;
  Result<UniqueFd> open_for_mapping(const AddressSpace::FileNeed& need);
  Result<Process*> find(std::uint32_t id);

  SkeletonSource& source;
  UniqueFd root;
  PrivateFiles private_files;
  OpenFiles files;
  std::optional<Family> family;  // What the processes are to one another.
  // As in the image, once it is built; meanwhile helpers too.
  std::vector<std::unique_ptr<Process>> processes;
  UniqueFd time_namespace;
  std::int64_t monotonic_delta_ns = 0, boottime_delta_ns = 0;
  std::int64_t coarse_ns = 0;  // What the program may have read of CLOCK_MONOTONIC_COARSE.
  const image::Capsule* prepared_final = nullptr;
  cpu_set_t cpus{};
  std::uint64_t cap_bounding = 0;
  Notes notes;
  std::vector<sys::InterruptedSleep> sleeps;  // From start() on.
};

Restorer::Restorer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Restorer::Restorer(Restorer&&) noexcept = default;
Restorer::~Restorer() = default;

Result<Restorer> Restorer::create(SkeletonSource& source) {
  return Restorer(std::make_unique<Impl>(source, TRY(source.root())));
}

Result<void> Restorer::align_clocks(std::int64_t monotonic_delta_ns,
                                    std::int64_t boottime_delta_ns) {
  INVARIANT(!impl_->time_namespace, "the clocks are set once");
  impl_->monotonic_delta_ns = monotonic_delta_ns;
  impl_->boottime_delta_ns = boottime_delta_ns;
  impl_->time_namespace =
      TRY(impl_->source.set_clocks(impl_->monotonic_delta_ns, impl_->boottime_delta_ns));
  return {};
}

Result<void> Restorer::prepare(const image::Capsule& so_far) {
  TRY(check_supported(so_far, false));
  return impl_->build(so_far, false);
}

Result<void> Restorer::prepare_final(const image::Capsule& final) {
  TRY(check_supported(final, true));
  TRY(impl_->build(final, true));
  impl_->prepared_final = &final;
  return {};
}

// Processes that have ended since go, those that have come since are forked.
Result<void> Restorer::Impl::build(const image::Capsule& image, bool final) {
  TRY(follow_family(image).with("the family"));
  TRY(private_files.sync(image));
  for (const image::Process& p : image.processes()) {
    Process& process = *TRY(find(static_cast<std::uint32_t>(p.pid())));
    TRY((final ? process.memory.sync_last(p.mm()) : process.memory.sync(p.mm())).with("mappings"));
    if (time_namespace) {
      TRY(enter_time_namespace(process));
      TRY(set_threads(process, p));
    }
  }
  return {};
}

namespace {

std::vector<Relative> relatives(const image::Capsule& image) {
  std::vector<Relative> all;
  for (const image::Process& p : image.processes())
    all.push_back({p.pid(), p.ppid(), p.pgid(), p.sid(), p.child_subreaper()});
  for (const image::Zombie& z : image.zombies())
    all.push_back({z.pid(), z.ppid(), z.pgid(), z.sid(), false, true});
  return all;
}

std::vector<pid_t> thread_numbers(const image::Capsule& image) {
  std::vector<pid_t> all;
  for (const image::Process& p : image.processes())
    for (const image::Thread& t : p.threads()) all.push_back(t.tid());
  return all;
}

const image::Process* in_image(const image::Capsule& image, pid_t pid) {
  for (const image::Process& p : image.processes())
    if (p.pid() == pid) return &p;
  return nullptr;
}

const image::Zombie* zombie_in_image(const image::Capsule& image, pid_t pid) {
  for (const image::Zombie& z : image.zombies())
    if (z.pid() == pid) return &z;
  return nullptr;
}

// What the parent of a new child gets at its end.
int exit_signal(const image::Capsule& image, pid_t pid) {
  if (const image::Process* process = in_image(image, pid)) return process->exit_signal();
  if (const image::Zombie* zombie = zombie_in_image(image, pid)) return zombie->exit_signal();
  return SIGCHLD;  // A helper.
}

}  // namespace

Result<void> Restorer::Impl::follow_family(const image::Capsule& image) {
  const std::vector<Relative> wanted = relatives(image);
  std::vector<FamilyStep> steps;
  if (family) {
    steps = TRY(plan_family_changes(*family, wanted));
  } else {
    const sys::ProcStatus status = TRY(sys::read_status(source.init_pid()));
    const Relative init{status.ns_tgid.back(), 0, status.ns_pgid.back(), status.ns_sid.back()};
    steps = TRY(plan_family(init, wanted, thread_numbers(image)));
    family.emplace(init);
  }
  for (const FamilyStep& step : steps) {
    TRY(take(step, image));
    TRY(family->apply(step));
  }
  return {};
}

Result<void> Restorer::Impl::take(const FamilyStep& step, const image::Capsule& image) {
  if (step.kind == FamilyStep::Kind::fork) return fork(step, image);
  Skeleton& skeleton = TRY(find(static_cast<std::uint32_t>(step.pid)))->skeleton;
  Batch b = skeleton.batch();
  switch (step.kind) {
    case FamilyStep::Kind::new_session: {
      b.call(SYS_setsid, "setsid", {});
      const image::Process* leader = in_image(image, step.pid);
      if (leader == nullptr || !leader->controlling_terminal()) break;
      TRY(skeleton.run(b).with(fmt::format("process {}", step.pid)));
      return files.take_terminal(skeleton);
    }
    case FamilyStep::Kind::subreaper:
      b.call(SYS_prctl, "prctl(PR_SET_CHILD_SUBREAPER)", {PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0});
      break;
    case FamilyStep::Kind::join_group:
      b.call(SYS_setpgid, "setpgid", {0, static_cast<std::uint64_t>(step.group)});
      break;
    case FamilyStep::Kind::end:
      TRY(skeleton.end());
      std::erase_if(processes, [&](const auto& p) { return p->skeleton.pid() == step.pid; });
      return {};
    case FamilyStep::Kind::end_zombie:
      return end_zombie(skeleton, image);
    case FamilyStep::Kind::fork:
      break;  // Above.
  }
  return skeleton.run(b).with(fmt::format("process {}", step.pid));
}

// Its parent, another skeleton, must be told neither more nor less than a program is: SIGCHLD isn't
// ignored while the child ends, or no zombie would be left, and what was sent is thrown away.
Result<void> Restorer::Impl::end_zombie(Skeleton& skeleton, const image::Capsule& image) {
  const image::Zombie& zombie = *zombie_in_image(image, skeleton.pid());
  Skeleton& parent = TRY(find(static_cast<std::uint32_t>(zombie.ppid())))->skeleton;
  TRY(parent.ignore_children(false));
  TRY(skeleton.end_as(zombie.wait_status(), zombie.uid(), zombie.comm()));
  TRY(parent.ignore_children(true));
  std::erase_if(processes, [&](const auto& p) { return p->skeleton.pid() == zombie.pid(); });
  return {};
}

Result<void> Restorer::Impl::fork(const FamilyStep& step, const image::Capsule& image) {
  auto open = [this](const AddressSpace::FileNeed& need) { return open_for_mapping(need); };
  const image::Process* wanted = in_image(image, step.pid);  // None: a helper, a zombie.
  if (step.by != family->members().front().pid) {
    Process& parent = *TRY(find(static_cast<std::uint32_t>(step.by)));
    Skeleton child = TRY(parent.skeleton.fork(step.pid, exit_signal(image, step.pid))
                             .with(fmt::format("process {} of {}", step.pid, step.by)));
    auto process = std::make_unique<Process>(std::move(child), open);
    process->in_time_namespace = parent.in_time_namespace;
    processes.push_back(std::move(process));
    return {};
  }
  std::vector<AddressRange> ranges;
  if (wanted != nullptr)
    for (const image::Vma& v : wanted->mm().vmas()) ranges.push_back({v.start(), v.end()});
  Skeleton skeleton = TRY(Skeleton::adopt(TRY(source.fork_skeleton(step.pid)), step.pid, ranges));
  if (sched_getaffinity(skeleton.node_pid(), sizeof cpus, &cpus) != 0)
    return os_error("sched_getaffinity");
  cap_bounding = TRY(sys::read_status(skeleton.node_pid())).cap_bounding;
  processes.push_back(std::make_unique<Process>(std::move(skeleton), open));
  return {};
}

Result<UniqueFd> Restorer::Impl::open_for_mapping(const AddressSpace::FileNeed& need) {
  int flags = need.write ? O_RDWR : O_RDONLY;
  if (need.file == nullptr) return private_files.reopen(need.shmem, O_RDWR);
  return files.open_ref(*need.file, flags);
}

Result<void> Restorer::Impl::enter_time_namespace(Process& process) {
  if (process.in_time_namespace) return {};
  INVARIANT(process.skeleton.single_threaded(), "threads before the time namespace");
  int ours[] = {time_namespace.get()};
  std::vector<int> there = TRY(process.skeleton.pass_fds(ours));
  Batch b = process.skeleton.batch();
  auto fd = static_cast<std::uint64_t>(there[0]);
  b.call(SYS_setns, "setns(CLONE_NEWTIME)", {fd, CLONE_NEWTIME});
  b.call(SYS_close, "close", {fd});
  TRY(process.skeleton.run(b));
  process.in_time_namespace = true;
  return {};
}

Result<void> Restorer::Impl::set_threads(Process& process, const image::Process& image) {
  if (process.skeleton.single_threaded()) {
    TRY(register_membarrier(process.skeleton, image.membarrier(), process.membarrier_done));
  }
  std::vector<pid_t> tids;
  for (const image::Thread& t : image.threads()) tids.push_back(t.tid());
  return process.skeleton.set_threads(tids);
}

Result<Restorer::Impl::Process*> Restorer::Impl::find(std::uint32_t id) {
  for (const std::unique_ptr<Process>& process : processes)
    if (process->skeleton.pid() == static_cast<pid_t>(id)) return process.get();
  return make_error(Errc::invalid, "no process {} in the image", id);
}

Result<SpaceTarget> Restorer::space(std::uint32_t id) {
  SpaceTarget target;
  if ((id & private_file_bit) != 0) {
    target.file_fd = TRY(impl_->private_files.content_fd(id & ~private_file_bit));
    return target;
  }
  Impl::Process* p = TRY(impl_->find(id));
  target.node_pid = p->skeleton.node_pid();
  target.mem_fd = p->skeleton.mem_fd();
  return target;
}

Result<UniqueFd> Restorer::make_userfaultfd(std::uint32_t id, int flags) {
  Impl::Process* p = TRY(impl_->find(id));
  Batch b = p->skeleton.batch();
  std::size_t made = b.call(SYS_userfaultfd, "userfaultfd", {static_cast<std::uint64_t>(flags)});
  TRY(p->skeleton.run(b));
  auto there = static_cast<int>(b.result(made));
  UniqueFd fd = TRY(p->skeleton.fetch_fd(there));
  b.clear();
  b.call(SYS_close, "close", {static_cast<std::uint64_t>(there)});
  TRY(p->skeleton.run(b));
  return fd;
}

Result<void> Restorer::drop_pages(std::uint32_t id, std::span<const MemoryRange> ranges,
                                  bool in_pieces) {
  Impl::Process* p = TRY(impl_->find(id));
  std::vector<AddressSpace::Range> list;
  for (const MemoryRange& r : ranges) list.push_back({r.start, r.end});
  return p->memory.drop_pages(list, in_pieces);
}

std::vector<MemoryRange> Restorer::pages_needed(const image::Process& process) {
  std::vector<MemoryRange> ranges;
  auto add = [&](std::uint64_t start, std::uint64_t end) {
    ranges.push_back({start & ~4095ull, (end + 4095) & ~4095ull});
  };
  for (const image::Thread& t : process.threads()) {
    if (t.rseq_addr() != 0) add(t.rseq_addr(), t.rseq_addr() + t.rseq_size());
    for (const Touched& r : memory_touched(t.restart())) add(r.start, r.end);
  }
  for (const image::Vma& v : process.mm().vmas()) {
    if ((v.flags() & image::VMA_LOCKED) != 0 && (v.flags() & image::VMA_LOCKONFAULT) == 0)
      add(v.start(), v.end());
  }
  std::sort(ranges.begin(), ranges.end(), [](auto& a, auto& b) { return a.start < b.start; });
  return ranges;
}

Result<void> Restorer::finish(const image::Capsule& final, std::int64_t frozen_ns) {
  Impl& m = *impl_;
  if (m.prepared_final != &final) TRY(prepare_final(final));
  if (!m.time_namespace) {
    TRY(align_clocks(final.clocks().monotonic_ns() + frozen_ns - godwit::monotonic_ns(),
                     final.clocks().boottime_ns() + frozen_ns - godwit::boottime_ns()));
    for (const image::Process& p : final.processes()) {
      Impl::Process& process = *TRY(m.find(static_cast<std::uint32_t>(p.pid())));
      TRY(m.enter_time_namespace(process));
      TRY(m.set_threads(process, p));
    }
  }
  // What is left of sleeps and timers is time of the capsule's clock, which may be behind a little;
  // by this node's clock a sleep would seem to end early. Less than 0: not there yet.
  frozen_ns = godwit::monotonic_ns() + m.monotonic_delta_ns - final.clocks().monotonic_ns();
  TRY(m.private_files.finish(final));
  auto skeletons = [&m](pid_t pid) -> Skeleton* {
    for (const auto& process : m.processes)
      if (pid == 0 || process->skeleton.pid() == pid) return &process->skeleton;
    return nullptr;
  };
  TRY(m.files.open_all(final, frozen_ns, skeletons, m.notes));
  // Children first: while they come to stand as a signal has stopped them, their parents ignore it.
  for (auto p = final.processes().rbegin(); p != final.processes().rend(); ++p)
    TRY(m.finish_process(*TRY(m.find(static_cast<std::uint32_t>(p->pid()))), *p, final, frozen_ns));
  if (final.next_pid() > 0) TRY(m.source.set_last_pid(final.next_pid()));
  m.files.close_all();
  m.coarse_ns = final.clocks().monotonic_coarse_ns();
  m.note_raw_clock(final.clocks());
  return m.wait_for_clocks(final.clocks());
}

Result<void> Restorer::Impl::finish_process(Process& process, const image::Process& image,
                                            const image::Capsule& capsule, std::int64_t frozen_ns) {
  Skeleton& skeleton = process.skeleton;
  TRY(files.install(skeleton, image, capsule));
  TRY(register_membarrier(skeleton, image.membarrier(), process.membarrier_done));
  TRY(restore_process(skeleton, image, capsule.clocks(), files, frozen_ns, notes));
  TRY(process.memory.apply_locks(image.mm()));
  TRY(write_proc_files(skeleton.node_pid(), image, notes));
  TRY(skeleton.close_channel());
  process.seccomp_shared_count = seccomp_shared(image);
  TRY(restore_threads(process, image));
  TRY(restore_leader(process, image, capsule));
  TRY(restart_calls(process, image, frozen_ns));
  TRY(ignore_sigtrap(skeleton, image));
  TRY(skeleton.remove_traces());
  if (image.stop_signal() != 0) TRY(stop(process, image));
  return set_contexts(process, image);
}

Result<void> Restorer::Impl::stop(Process& process, const image::Process& image) {
  TRY(process.skeleton.stop_by(image.stop_signal()));
  Result<Process*> parent = find(static_cast<std::uint32_t>(image.ppid()));
  if (!image.stop_waited_for() || !parent.ok()) return {};
  // It would be told once more.
  Batch b = (*parent)->skeleton.batch();
  b.call(SYS_wait4, "wait4",
         {static_cast<std::uint64_t>(image.pid()), 0, WUNTRACED | WNOHANG | __WALL, 0});
  return (*parent)->skeleton.run(b);
}

// The program must not see its clocks go back. They were set to within some microseconds; all that
// happened since the freeze (the last pages, this restore) normally took longer.
Result<void> Restorer::Impl::wait_for_clocks(const image::Clocks& clocks) const {
  std::int64_t behind =
      std::max(clocks.monotonic_ns() - (godwit::monotonic_ns() + monotonic_delta_ns),
               clocks.boottime_ns() - (godwit::boottime_ns() + boottime_delta_ns));
  if (behind <= 0) return {};
  if (behind > clock_wait_ns_max) {
    return make_error(Errc::internal, "the capsule's clocks are {} ms behind", behind / 1'000'000);
  }
  timespec wait{behind / 1'000'000'000, behind % 1'000'000'000};
  while (clock_nanosleep(CLOCK_MONOTONIC, 0, &wait, &wait) == EINTR) {
  }
  return {};
}

// A time namespace has one offset for CLOCK_MONOTONIC and CLOCK_MONOTONIC_RAW, and nodes differ in
// how far apart they are.
void Restorer::Impl::note_raw_clock(const image::Clocks& clocks) {
  const std::int64_t jump_ns =
      godwit::monotonic_raw_ns() - godwit::monotonic_ns() - clocks.raw_ahead_ns();
  if (std::abs(jump_ns) < raw_jump_ns_min) return;
  notes.push_back(fmt::format("CLOCK_MONOTONIC_RAW jumps by {} ms", jump_ns / 1'000'000));
}

// The coarse clock tells the time of the last tick, and ticks of this node fall at other moments
// than the source's. A downtime shorter than a tick (4 ms, mostly) could take it back.
void Restorer::Impl::wait_for_tick() const {
  const std::int64_t began_ns = godwit::monotonic_ns();
  while (godwit::monotonic_coarse_ns() + monotonic_delta_ns < coarse_ns &&
         godwit::monotonic_ns() - began_ns < tick_wait_ns_max) {
    const timespec look{0, tick_look_ns};
    ::nanosleep(&look, nullptr);
  }
}

ThreadContext Restorer::Impl::context(const Process& process, const image::Process& image,
                                      int thread) const {
  return {image, image.threads(thread), process.seccomp_shared_count, cpus, cap_bounding};
}

// All threads but the leader, as many side by side as there are lanes. What doesn't fit into a lane
// (large seccomp filters) goes alone through the leader's.
Result<void> Restorer::Impl::restore_threads(Process& process, const image::Process& image) {
  Skeleton& skeleton = process.skeleton;
  const auto& threads = skeleton.threads();
  int count = image.threads_size();
  auto fill = [&](Batch& b, const ThreadContext& c) -> Result<void> {
    TRY(add_thread_state(b, c, notes));
    add_pending_signals(b, c);
    return add_credentials(b, c);
  };
  for (int next = 1; next < count;) {
    std::vector<std::pair<pid_t, Batch>> running;
    for (; next < count && running.size() < threads_at_once; ++next) {
      ThreadContext c = context(process, image, next);
      pid_t tid = threads[static_cast<std::size_t>(next)].node_tid;
      bool large = thread_data_bytes(c) > Arena::lane_bytes;
      Batch b = skeleton.batch(large ? 0 : static_cast<unsigned>(running.size()) + 1);
      if (large && !b.has_room(0, thread_data_bytes(c))) {
        return make_error(Errc::unsupported, "thread {}: {} bytes of state", c.thread.tid(),
                          thread_data_bytes(c));
      }
      TRY(fill(b, c));
      TRY(b.start(tid));
      if (large) {
        TRY(b.wait(tid));
      } else {
        running.emplace_back(tid, std::move(b));
      }
    }
    for (auto& [tid, b] : running) TRY(b.wait(tid));
  }
  return {};
}

Result<void> Restorer::Impl::restore_leader(Process& process, const image::Process& image,
                                            const image::Capsule& capsule) {
  Skeleton& skeleton = process.skeleton;
  ThreadContext c = context(process, image, 0);
  Batch b = skeleton.batch();
  TRY(add_thread_state(b, c, notes));
  add_shared_pending(b, image);
  add_pending_signals(b, c);
  TRY(add_limits(b, skeleton, image, cap_bounding, notes));
  TRY(add_credentials(b, c));
  TRY(files.add_owners(b, image, capsule));
  add_after_credentials(b, image, notes);
  return skeleton.run(b);
}

Result<void> Restorer::Impl::restart_calls(Process& process, const image::Process& image,
                                           std::int64_t frozen_ns) {
  Restarter restarter(process.skeleton, frozen_ns);
  process.regs.resize(static_cast<std::size_t>(image.threads_size()));
  std::vector<Restarter::Item> items;
  for (int i = 0; i < image.threads_size(); ++i) {
    sys::Regs& regs = process.regs[static_cast<std::size_t>(i)];
    std::memcpy(&regs, image.threads(i).regs().data(), sizeof regs);
    items.push_back({&image.threads(i),
                     process.skeleton.threads()[static_cast<std::size_t>(i)].node_tid, &regs, 0});
  }
  for (std::size_t at = 0; at < items.size(); at += threads_at_once) {
    TRY(restarter.apply(
        std::span(items).subspan(at, std::min<std::size_t>(threads_at_once, items.size() - at))));
  }
  for (const Restarter::Item& item : items) {
    if (item.ends_at_ns == 0) continue;
    sys::InterruptedSleep& sleep =
        process.sleeps.emplace_back(Process::Sleep{item.node_tid, {}}).sleep;
    const image::Restart& restart = item.thread->restart();
    sleep.tid_inside = item.thread->tid(), sleep.nr = restart.nr(),
    sleep.ends_at_ns = item.ends_at_ns;
    std::copy(restart.args().begin(), restart.args().end(), sleep.args);
  }
  return {};
}

Result<void> Restorer::Impl::set_contexts(const Process& process, const image::Process& image) {
  for (int i = 0; i < image.threads_size(); ++i) {
    pid_t tid = process.skeleton.threads()[static_cast<std::size_t>(i)].node_tid;
    const image::Thread& t = image.threads(i);
    TRY(sys::ptrace_set_xstate(tid, t.xstate()).with(fmt::format("thread {}", t.tid())));
    TRY(sys::ptrace_set_regs(tid, process.regs[static_cast<std::size_t>(i)])
            .with(fmt::format("thread {}", t.tid())));
    TRY(sys::ptrace_set_sigmask(tid, t.signal_mask()));
  }
  return {};
}

Result<void> Restorer::seal() {
  TRY(impl_->source.freeze_tree());
  for (const auto& process : impl_->processes) TRY(process->skeleton.disarm_exit_kill());
  return {};
}

Result<void> Restorer::start() {
  for (const auto& process : impl_->processes) {
    for (const Impl::Process::Sleep& s : process->sleeps) {
      Result<std::uint64_t> switches =
          sys::read_voluntary_switches(process->skeleton.node_pid(), s.node_tid);
      if (!switches.ok()) continue;  // Its timeout will begin anew at the next move.
      impl_->sleeps.push_back(s.sleep);
      impl_->sleeps.back().voluntary_switches = *switches;
    }
  }
  impl_->wait_for_tick();
  Result<void> done = impl_->source.start_traffic();
  // Thawed first: a thread that is detached in a frozen group wakes twice (64 threads: 0.5 to 2
  // ms). They still stand in their ptrace stops. Should we die in between, the kernel detaches the
  // rest, which is right after the grant.
  if (Result<void> thawed = impl_->source.thaw_tree(); done.ok()) done = std::move(thawed);
  // Also if that failed: it was granted, so it is nobody's to kill any more. Who takes over thaws.
  for (const auto& process : impl_->processes) {
    Result<void> released = process->skeleton.release();
    if (done.ok()) done = std::move(released);
  }
  return done;
}

const std::vector<sys::InterruptedSleep>& Restorer::sleeps() const { return impl_->sleeps; }

const std::vector<std::string>& Restorer::notes() const { return impl_->notes; }

std::vector<std::pair<pid_t, pid_t>> Restorer::processes() const {
  std::vector<std::pair<pid_t, pid_t>> out;
  for (const auto& process : impl_->processes)
    out.emplace_back(process->skeleton.pid(), process->skeleton.node_pid());
  return out;
}

}  // namespace godwit::restore
