#include "cli/commands.h"

#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>

#include "base/io.h"
#include "cli/attach.h"
#include "cli/connect.h"
#include "cli/exit_codes.h"
#include "cli/json.h"
#include "cli/text.h"
#include "rpc/client.h"

namespace godwit::cli {

std::unique_ptr<rpc::ApiClient> connect(const Options& options, int& code) {
  const std::string socket = choose_socket(
      options.endpoint, [](const char* name) { return std::getenv(name); },
      [](const std::string& path) { return access(path.c_str(), F_OK) == 0; });
  if (auto there = check_listening(socket); !there.ok()) {
    fmt::print(stderr, "godwit: {}\n", there.error().what());
    code = static_cast<int>(Exit::no_daemon);
    return nullptr;
  }
  return rpc::connect_unix(socket);
}

// Arguments and paths needn't be UTF-8, JSON must be.
void print_json(const Json& json) {
  fmt::print("{}\n", json.dump(2, ' ', false, Json::error_handler_t::replace));
}

int fail(const Options& options, const Error& error) {
  if (options.json) print_json(to_json(error));
  fmt::print(stderr, "godwit: {}\n", error.what());
  return static_cast<int>(exit_for(error));
}

int usage(const std::string& text) {
  fmt::print(stderr, "godwit: {}\n", text);
  return static_cast<int>(Exit::usage);
}

namespace {

// As long as a wait is asked for at a time; asked again until the end.
constexpr std::int64_t wait_slice_us = 10'000'000;

int ended(const AttachEnd& end, const std::string& name) {
  if (end.detached) {
    fmt::print(stderr, "\r\ngodwit: detached; {} runs on\n", name);
    return 0;
  }
  if (!end.note.empty()) fmt::print(stderr, "godwit: {}: {}\n", name, end.note);
  return exit_of_program(end.wait_status);
}

int attached(rpc::ApiClient& client, const AttachOptions& how, const std::string& name) {
  auto end = attach(client, how);
  if (end.ok()) return ended(*end, name);
  fmt::print(stderr, "godwit: {}\n", end.error().what());
  return static_cast<int>(Exit::run_failed);
}

int run_error(const Options& options, const Error& error) {
  fail(options, error);
  if (error.sys_errno() == ENOENT) return static_cast<int>(Exit::no_program);
  if (error.sys_errno() == EACCES || error.sys_errno() == ENOEXEC) {
    return static_cast<int>(Exit::not_executable);
  }
  return static_cast<int>(Exit::run_failed);
}

std::string state_text(const api::CapsuleInfo& capsule) {
  const std::string& state = capsule.state();
  if (state == "running") return coloured(Colour::green, state);
  if (state == "in-doubt") return coloured(Colour::red, state);
  if (state != "exited") return coloured(Colour::yellow, state);
  return coloured(Colour::dim, fmt::format("exited {}", exit_of_program(capsule.wait_status())));
}

void warn_unreachable(const google::protobuf::RepeatedPtrField<std::string>& nodes) {
  for (const auto& node : nodes) fmt::print(stderr, "godwit: node {} does not answer\n", node);
}

}  // namespace

int run_command(const Options& options) {
  if (options.argv.empty()) return usage("run: no program given (godwit run -- CMD ARGS)");
  const Signals signals;
  int code = 0;
  auto client = connect(options, code);
  if (!client) return code;
  api::RunRequest request;
  request.set_name(options.name);
  request.set_node(options.run_node);
  for (const auto& argument : options.argv) request.add_argv(argument);
  for (auto& entry : program_environment(environ, options.env, !options.user.empty())) {
    request.add_env(std::move(entry));
  }
  request.set_cwd(options.cwd);
  if (options.cwd.empty()) {
    if (char* here = get_current_dir_name()) {
      request.set_cwd_wish(here);
      free(here);
    }
  }
  request.set_user(options.user);
  request.set_cpus(options.cpus);
  request.set_tty(options.tty);
  request.set_keep_stdin(options.keep_stdin);
  request.set_cpu_baseline(options.cpu_baseline);
  AttachOptions how;
  if (!options.detach) {
    how.attach_id = random_attach_id();
    how.from_start = true;
    how.tty = options.tty;
    request.set_attach_id(how.attach_id);
    *request.mutable_window() = window_size();
  }
  auto reply = client->run(rpc::Call(), request);
  if (!reply.ok()) return run_error(options, reply.error());
  const auto& capsule = reply->capsule();
  if (options.detach) {
    if (options.json)
      print_json(to_json(capsule));
    else
      fmt::print("{}\n", capsule.name());
    return 0;
  }
  how.capsule = capsule.id();
  return attached(*client, how, capsule.name());
}

int attach_command(const Options& options) {
  const Signals signals;
  int code = 0;
  auto client = connect(options, code);
  if (!client) return code;
  // Whether the capsule has a terminal decides about ours.
  api::PsRequest request;
  request.set_capsule(options.capsule);
  auto known = client->ps(rpc::Call(), request);
  if (!known.ok()) return fail(options, known.error());
  AttachOptions how;
  how.capsule = options.capsule;
  how.attach_id = random_attach_id();
  how.take_over = options.take_over;
  how.use_stdin = !options.no_stdin;
  for (const auto& capsule : known->capsules()) {
    how.tty = capsule.tty() && isatty(STDIN_FILENO) != 0;
  }
  if (known->capsules().empty()) {
    return fail(options, make_error(Errc::not_found, "there is no capsule {}", options.capsule));
  }
  return attached(*client, how, options.capsule);
}

int ps_command(const Options& options) {
  api::PsRequest request;
  request.set_all(options.all);
  request.set_capsule(options.capsule);
  return call(options, request, &rpc::Api::ps, [&](const api::PsReply& reply) {
    warn_unreachable(reply.unreachable());
    if (options.json) {
      Json list = Json::array();
      for (const auto& capsule : reply.capsules()) list.push_back(to_json(capsule));
      print_json(list);
      return 0;
    }
    Table table({"NAME", "ID", "NODE", "STATE", "USER", "IP", "PID", "MEMORY", "CPU", "AGE",
                 "MOVES", "RESIDUAL", "COMMAND"});
    for (const auto& c : reply.capsules()) {
      std::string residual;
      for (const auto& node : c.residual()) residual += (residual.empty() ? "" : ",") + node;
      std::string command;
      for (const auto& argument : c.argv()) command += (command.empty() ? "" : " ") + argument;
      if (command.size() > 60) command = command.substr(0, 57) + "...";
      table.add({c.name(), c.id(), c.node(), state_text(c), c.user(), c.ip(),
                 c.pid() == 0 ? "-" : fmt::format("{}", c.pid()), human_bytes(c.memory_bytes()),
                 fmt::format("{:.2f}", c.cpu()), human_age(c.age_us()),
                 fmt::format("{}", c.migrations()), residual.empty() ? "-" : residual, command});
    }
    fmt::print("{}", table.text());
    for (const auto& c : reply.capsules()) {
      if (!c.note().empty() && c.state() != "exited") fmt::print("{}: {}\n", c.name(), c.note());
    }
    return 0;
  });
}

int nodes_command(const Options& options) {
  return call(options, api::NodesRequest(), &rpc::Api::nodes, [&](const api::NodesReply& reply) {
    if (options.json) {
      Json list = Json::array();
      for (const auto& node : reply.nodes()) list.push_back(to_json(node));
      print_json(list);
      return 0;
    }
    Table table({"NODE", "ADDRESS", "ALIVE", "CORES", "SPEED", "LOAD", "MEMORY", "CAPSULES",
                 "ACCEPTS", "VERSION", "KERNEL"});
    for (const auto& n : reply.nodes()) {
      if (!n.alive()) {
        table.add({n.name(), n.address(), coloured(Colour::red, "no"), "-", "-", "-", "-", "-", "-",
                   "-", n.note()});
        continue;
      }
      table.add(
          {n.name(), n.address(), coloured(Colour::green, "yes"), fmt::format("{:g}", n.cores()),
           fmt::format("{:g}", n.speed()), fmt::format("{:.2f}", n.load()),
           fmt::format("{} of {}", human_bytes(n.memory_used_bytes()),
                       human_bytes(n.memory_limit_bytes())),
           fmt::format("{}", n.capsules()), n.accepts() ? "yes" : "no", n.version(), n.kernel()});
    }
    fmt::print("{}", table.text());
    return 0;
  });
}

int logs_command(const Options& options) {
  class Printer final : public rpc::Sink<api::LogsChunk> {
   public:
    bool write(const api::LogsChunk& chunk) override {
      const int fd = chunk.stream() == 2 ? STDERR_FILENO : STDOUT_FILENO;
      return write_full(fd, as_bytes(chunk.data())).ok();
    }
  };
  int code = 0;
  auto client = connect(options, code);
  if (!client) return code;
  api::LogsRequest request;
  request.set_capsule(options.capsule);
  request.set_follow(options.follow);
  Printer printer;
  auto done = client->logs(rpc::Call(), request, printer);
  return done.ok() ? 0 : fail(options, done.error());
}

int wait_command(const Options& options) {
  int code = 0;
  auto client = connect(options, code);
  if (!client) return code;
  const auto now = [] { return std::chrono::steady_clock::now(); };
  const auto until = now() + std::chrono::duration_cast<std::chrono::nanoseconds>(
                                 std::chrono::duration<double>(options.timeout_s));
  auto silent_until = now() + std::chrono::seconds(reconnect_s_max);
  bool heard = false;
  while (true) {
    api::WaitRequest request;
    request.set_capsule(options.capsule);
    std::int64_t slice_us = wait_slice_us;
    if (options.timeout_s > 0) {
      slice_us = std::min<std::int64_t>(
          slice_us, std::chrono::duration_cast<std::chrono::microseconds>(until - now()).count());
    }
    request.set_timeout_us(std::max<std::int64_t>(slice_us, 0));
    auto reply = client->wait(rpc::Call(), request);
    if (reply.ok() && reply->exited()) {
      if (options.json)
        print_json(wait_to_json(true, reply->wait_status(), reply->note()));
      else if (!reply->note().empty())
        fmt::print(stderr, "godwit: {}\n", reply->note());
      return exit_of_program(reply->wait_status());
    }
    if (reply.ok()) {
      heard = true;
      silent_until = now() + std::chrono::seconds(reconnect_s_max);
    } else {
      // A daemon that is restarted, or a capsule between two nodes: ask again for a while.
      const auto error = reply.error().code();
      const bool passing =
          error == Errc::peer_lost || error == Errc::timeout || (error == Errc::not_found && heard);
      if (!passing || now() > silent_until) {
        fail(options, reply.error());
        return error == Errc::not_found ? static_cast<int>(Exit::not_found)
                                        : static_cast<int>(Exit::run_failed);
      }
      usleep(100'000);
    }
    if (options.timeout_s > 0 && now() >= until) {
      if (options.json) print_json(wait_to_json(false, 0, ""));
      return static_cast<int>(Exit::timeout);
    }
  }
}

int signal_command(const Options& options) {
  api::SignalRequest request;
  request.set_capsule(options.capsule);
  request.set_signal(parse_signal(options.signal));
  if (request.signal() == 0) return usage("signal: there is no signal " + options.signal);
  return call(options, request, &rpc::Api::signal, [](const auto&) { return 0; });
}

int kill_command(const Options& options) {
  api::KillRequest request;
  request.set_capsule(options.capsule);
  return call(options, request, &rpc::Api::kill, [](const auto&) { return 0; });
}

int freeze_command(const Options& options, bool frozen) {
  api::FreezeRequest request;
  request.set_capsule(options.capsule);
  request.set_frozen(frozen);
  return call(options, request, &rpc::Api::freeze, [](const auto&) { return 0; });
}

int remove_command(const Options& options) {
  api::RemoveRequest request;
  request.set_capsule(options.capsule);
  return call(options, request, &rpc::Api::remove, [](const auto&) { return 0; });
}

int resolve_command(const Options& options) {
  api::ResolveRequest request;
  request.set_capsule(options.capsule);
  request.set_lost_node(options.lost_node);
  return call(options, request, &rpc::Api::resolve, [&](const api::ResolveReply& reply) {
    if (options.json)
      print_json(to_json(reply.capsule()));
    else
      fmt::print("{} goes on on {}\n", reply.capsule().name(), reply.capsule().node());
    return 0;
  });
}

int help_exit_codes() {
  Table table({"CODE", "MEANING"});
  for (const auto& entry : exit_codes) {
    table.add({fmt::format("{}", static_cast<int>(entry.code)), entry.meaning});
  }
  fmt::print("{}run and wait exit with the program's own code.\n", table.text());
  return 0;
}

}  // namespace godwit::cli
