// godwit-worker: one side of one migration, or one small task of the engine, in a process of its
// own. A crash here costs a migration, not the node. Takes its order from descriptor 3.
#include "base/log.h"
#include "base/thread_name.h"
#include "migrate/recover.h"
#include "migrate/resume.h"
#include "migrate/source.h"
#include "migrate/target.h"
#include "migrate/worker_channel.h"
#include "sys/cpuid.h"
#include "sys/own_memory.h"
#include "sys/thread_priority.h"
#include "sys/vdso.h"
#include "transport/link.h"

#include <csignal>

namespace godwit::migrate {
namespace {

NodeEnv env_of(const wire::WorkerEnv& from) {
  NodeEnv env;
  env.node = NodeId{from.node()};
  env.cluster = from.cluster();
  env.run_dir = from.run_dir();
  env.state_dir = from.state_dir();
  env.cgroup_base = from.cgroup_base();
  env.bridge = from.bridge();
  env.libexec_dir = from.libexec_dir();
  return env;
}

// Buffers of streams and images of small programs: what is larger may fault.
constexpr std::size_t heap_bytes = 8 << 20;

// What any order needs and the daemon's spares have behind them when it comes.
void warm_up() {
  sys::prefault_own_memory(heap_bytes);
  transport::warm_up();
  (void)sys::cpu_features();
  (void)sys::own_vdso_build_id();
}

Result<void> serve() {
  WorkerChannel channel{UniqueFd(worker_fd)};
  // What ps(1) shows of one that waits.
  name_thread("godwit-spare");
  warm_up();
  sys::shorten_thread_slice();
  wire::WorkerOrder order;
  Result<void> received = channel.receive(order);
  // A spare whose daemon has ended.
  if (!received.ok() && received.error().code() == Errc::peer_lost) return {};
  TRY(std::move(received).with("order"));
  name_thread("godwit-worker");
  NodeEnv env = env_of(order.env());
  EventSink sink(channel);
  wire::Report report;
  switch (order.order_case()) {
    case wire::WorkerOrder::kSource:
      report = run_source(env, order.source(), sink);
      break;
    case wire::WorkerOrder::kTarget:
      report = run_target(env, order.target(), sink);
      break;
    case wire::WorkerOrder::kRecover:
      report = run_recover(env, order.recover());
      break;
    case wire::WorkerOrder::kFreeze:
      report = run_freeze(env, order.freeze());
      break;
    case wire::WorkerOrder::kCheck:
      report = run_check(env, order.check());
      break;
    case wire::WorkerOrder::kServe:
      report = run_serve(env, order.serve(), sink);
      break;
    case wire::WorkerOrder::kResume:
      report = run_resume(env, order.resume(), sink);
      break;
    case wire::WorkerOrder::ORDER_NOT_SET:
      return make_error(Errc::invalid, "order without content");
  }
  std::string phases;
  for (const wire::Phase& phase : report.phases())
    phases += fmt::format(" {}={}us", phase.name(), phase.us());
  LOG(info, "{}: {} total={}us downtime={}us pages={}{}",
      wire::Report::Outcome_Name(report.outcome()), report.reason(), report.total_us(),
      report.downtime_us(), report.pages_sent(), phases);
  sink.done(report);
  return {};
}

}  // namespace
}  // namespace godwit::migrate

int main() {
  // The daemon's end of the channel may close at any time; that is an error value, not a signal.
  std::signal(SIGPIPE, SIG_IGN);
  godwit::log_init("godwit-worker", godwit::LogLevel::info);
  if (godwit::Result<void> served = godwit::migrate::serve(); !served.ok()) {
    LOG(error, "{}", served.error().what());
    return 1;
  }
  return 0;
}
