#include "cli/command_line.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>

#include "base/io.h"
#include "cli/exit_codes.h"
#include "cli/man_page.h"

namespace godwit::cli {
namespace {

// What CLI11 can't know: that words follow which aren't godwit's.
class HelpFormatter : public CLI::Formatter {
 public:
  std::string make_usage(const CLI::App* app, std::string name) const override {
    std::string usage = CLI::Formatter::make_usage(app, name);
    if (app->get_name() != "run") return usage;
    while (!usage.empty() && usage.back() == '\n') usage.pop_back();
    return usage + " -- CMD [ARGS...]\n";
  }
};

class Builder {
 public:
  Builder(CLI::App& app, CommandLine& line) : app_(app), line_(line), o_(line.options) {}

  void build() {
    app_.description(
        "godwit moves running programs between the machines of a cluster.\n"
        "A capsule is a program with its processes, files and address; it runs on one node at a "
        "time.");
    app_.footer(
        "Examples:\n"
        "  godwit local up --nodes 3                      three nodes on this machine\n"
        "  godwit run -d --name c1 -- blastn -query q.fa  a program in a capsule\n"
        "  godwit migrate c1 n2                           moves it while it runs\n"
        "Environment: GODWIT_SOCKET (daemon's socket), GODWIT_CLUSTER (local cluster).\n"
        "`godwit help exit-codes` lists the exit codes.");
    app_.formatter(std::make_shared<HelpFormatter>());
    app_.require_subcommand(1);
    app_.set_version_flag("--version", "godwit 0.1.0");
    app_.add_option("--socket", o_.endpoint.socket, "The daemon's socket")->type_name("PATH");
    app_.add_option("--cluster", o_.endpoint.cluster, "Talk to a daemon of this local cluster")
        ->type_name("NAME");
    app_.add_option("--node", o_.endpoint.node, "Talk to this node's daemon (local cluster)")
        ->type_name("nX");
    build_run();
    build_lists();
    build_streams();
    build_control();
    build_migration();
    build_local();
    build_help();
  }

 private:
  // `json`: it prints. Global options may stand behind the command too.
  CLI::App* command(const char* name, const char* what, const char* examples, bool json,
                    std::function<int()> run) {
    CLI::App* sub = app_.add_subcommand(name, what);
    sub->footer(std::string("Examples:\n") + examples);
    sub->fallthrough();
    if (json) sub->add_flag("--json", o_.json, "Print JSON");
    sub->callback([this, run = std::move(run)] { line_.command = run; });
    return sub;
  }
  void capsule(CLI::App* sub) {
    sub->add_option("capsule", o_.capsule, "Name or id")->required()->type_name("C");
  }

  void build_run() {
    auto* run = command("run", "Runs a program in a capsule",
                        "  godwit run -- echo hello\n"
                        "  godwit run -t -- bash\n"
                        "  godwit run -d --node n2 --name c1 --cpus 2 -- ./simulate input\n"
                        "  echo 1+1 | godwit run -- bc",
                        true, [&o = o_] { return run_command(o); });
    run->add_option("--node", o_.run_node, "Where; \"best\": chosen")->type_name("nX");
    run->add_option("--name", o_.name, "Its name and hostname")->type_name("NAME");
    run->add_flag("-d,--detach", o_.detach, "Don't stay attached; prints the name");
    run->add_flag("-t,--tty", o_.tty, "With a terminal (^P ^Q detaches)");
    run->add_flag("-i,--keep-stdin", o_.keep_stdin, "With -d: stdin stays open for `attach`");
    run->add_option("--cpus", o_.cpus, "Cores it may use")->type_name("K");
    run->add_option("--env", o_.env, "Environment variable; K alone: the value from here")
        ->type_name("K=V")
        ->allow_extra_args(false)
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
    run->add_option("--cwd", o_.cwd, "Working directory, must exist there")->type_name("DIR");
    run->add_option("--user", o_.user, "As this user (root only)")->type_name("U");
    run->add_flag("--cpu-baseline", o_.cpu_baseline,
                  "Tell libraries to use only what every node's processor has");
    run->fallthrough(false);  // Else the program's options would be looked for among ours.
    run->prefix_command();
    run->callback([this, run] {
      const auto rest = run->remaining();  // Without "--": from the first word on.
      o_.argv.insert(o_.argv.begin(), rest.begin(), rest.end());
      line_.command = [&o = o_] { return run_command(o); };
    });
  }

  void build_lists() {
    auto* ps = command("ps", "Lists capsules of all nodes", "  godwit ps\n  godwit ps -a --json",
                       true, [&o = o_] { return ps_command(o); });
    ps->add_flag("-a,--all", o_.all, "Ended ones too");
    ps->add_option("capsule", o_.capsule, "Only this one")->type_name("C");
    command("nodes", "Lists the nodes of the cluster", "  godwit nodes\n  godwit nodes --json",
            true, [&o = o_] { return nodes_command(o); });
    auto* doctor =
        command("doctor", "What this kernel and machine offer, and what godwit does instead",
                "  godwit doctor\n  godwit doctor n2 --json", true,
                [&o = o_] { return doctor_command(o); });
    doctor->add_option("node", o_.doctor_node, "Another node")->type_name("NODE");
  }

  void build_streams() {
    auto* logs = command("logs", "Prints the last output (up to 1 MiB)",
                         "  godwit logs c1\n  godwit logs -f c1", false,
                         [&o = o_] { return logs_command(o); });
    capsule(logs);
    logs->add_flag("-f,--follow", o_.follow, "And what comes, until it ends");
    auto* attach = command("attach", "Attaches stdin, stdout, stderr and signals",
                           "  godwit attach c1\n  godwit attach --take-over c1", false,
                           [&o = o_] { return attach_command(o); });
    capsule(attach);
    attach->add_flag("--take-over", o_.take_over, "Also if another client is attached");
    attach->add_flag("--no-stdin", o_.no_stdin, "Output and signals only");
    auto* wait = command("wait", "Waits for the end; exits with the program's code",
                         "  godwit wait c1\n  godwit wait --timeout 10 c1 --json", true,
                         [&o = o_] { return wait_command(o); });
    capsule(wait);
    wait->add_option("--timeout", o_.timeout_s, "Seconds")->type_name("S");
  }

  void build_control() {
    auto* signal = command("signal", "Sends a signal to the main program",
                           "  godwit signal c1 TERM\n  godwit signal c1 10", false,
                           [&o = o_] { return signal_command(o); });
    capsule(signal);
    signal->add_option("signal", o_.signal, "Name or number")->required()->type_name("SIG");
    capsule(command("kill", "Kills everything in the capsule", "  godwit kill c1", false,
                    [&o = o_] { return kill_command(o); }));
    capsule(command("freeze", "Stops it where it is; it doesn't notice", "  godwit freeze c1",
                    false, [&o = o_] { return freeze_command(o, true); }));
    capsule(command("thaw", "Lets a frozen one go on", "  godwit thaw c1", false,
                    [&o = o_] { return freeze_command(o, false); }));
    capsule(command("rm", "Forgets an ended capsule and its output", "  godwit rm c1", false,
                    [&o = o_] { return remove_command(o); }));
  }

  void build_migration() {
    auto* migrate = command("migrate", "Moves a running capsule to another node",
                            "  godwit migrate c1 n2\n"
                            "  godwit migrate c1 best --mode precopy --downtime-target 5ms\n"
                            "  godwit migrate c1 n3 --json",
                            true, [&o = o_] { return migrate_command(o); });
    capsule(migrate);
    migrate->add_option("target", o_.target, "Node, or \"best\"")->type_name("NODE");
    migrate->add_option("--mode", o_.mode, "auto, stop, precopy, postcopy or hybrid")
        ->check(CLI::IsMember({"auto", "stop", "precopy", "postcopy", "hybrid"}));
    migrate->add_option("--downtime-target", o_.downtime_target, "When rounds may end (10ms)")
        ->type_name("TIME");
    migrate->add_flag("-q,--quiet", o_.quiet, "No progress line");
    auto* can = command("can-migrate", "Every reason against a move; touches nothing",
                        "  godwit can-migrate c1\n  godwit can-migrate c1 n2 --json", true,
                        [&o = o_] { return can_migrate_command(o); });
    capsule(can);
    can->add_option("target", o_.target, "Node")->type_name("NODE");
    auto* history =
        command("history", "Migrations: phases, bytes, rounds, downtime, outcome, reason",
                "  godwit history\n  godwit history c1 --json", true,
                [&o = o_] { return history_command(o); });
    history->add_option("capsule", o_.capsule, "Only of this one")->type_name("C");
    history->add_option("--limit", o_.limit, "At most so many (100)")->type_name("N");
    auto* resolve = command("resolve", "Ends a doubt: the node is lost for good (root only)",
                            "  godwit resolve c1 --lost-node n2\n"
                            "If the node is not lost after all, the program may run twice.",
                            true, [&o = o_] { return resolve_command(o); });
    capsule(resolve);
    resolve->add_option("--lost-node", o_.lost_node, "That will never run it")
        ->required()
        ->type_name("NODE");
  }

  CLI::App* local_command(CLI::App* local, const char* name, const char* what, const char* examples,
                          bool json, std::function<int()> run) {
    CLI::App* sub = local->add_subcommand(name, what);
    sub->footer(std::string("Examples:\n") + examples);
    sub->add_option("--name", line_.local.name, "Of the cluster (GODWIT_CLUSTER, default)")
        ->type_name("NAME");
    if (json) sub->add_flag("--json", line_.local.json, "Print JSON");
    sub->callback([this, run = std::move(run)] { line_.command = run; });
    return sub;
  }

  void build_local() {
    auto& l = line_.local;
    auto* local = app_.add_subcommand("local", "A cluster of nodes on this machine (root only)");
    local->require_subcommand(1);
    local->footer(
        "Examples:\n  godwit local up --nodes 3\n  godwit local status\n  godwit local down");
    auto* up = local_command(local, "up", "Starts a cluster",
                             "  godwit local up --nodes 3 --name test --memory 4G\n"
                             "  godwit local up --cores 4 --speed 1.0,1.0,0.5 --bandwidth 1gbit",
                             true, [&l] { return local_up_command(l); });
    up->add_option("--nodes", l.nodes, "How many (3)")->type_name("N");
    up->add_option("--cores", l.cores, "Emulated cores a node")->type_name("K");
    up->add_option("--speed", l.speeds, "Of a core on n1, n2, ...")->type_name("S,S,...");
    up->add_option("--memory", l.memory, "Limit of each node")->type_name("SIZE");
    up->add_option("--bandwidth", l.bandwidth, "Of each link")->type_name("RATE");
    up->add_option("--shared", l.shared, "Directory that all nodes see")->type_name("DIR");
    local_command(local, "status", "Shows the nodes", "  godwit local status --json", true,
                  [&l] { return local_status_command(l); });
    local_command(local, "down", "Removes everything of it, whatever state it is in",
                  "  godwit local down --name test", false, [&l] { return local_down_command(l); });
    auto* node = local_command(local, "node", "Switches a node off and on, kills its daemon",
                               "  godwit local node n2 stop\n  godwit local node n1 kill-daemon",
                               false, [&l] { return local_node_command(l); });
    node->add_option("node", l.node)->required()->type_name("nX");
    node->add_option("action", l.action, "stop, start, kill-daemon or start-daemon")
        ->required()
        ->check(CLI::IsMember({"stop", "start", "kill-daemon", "start-daemon"}));
    auto* link =
        local_command(local, "link", "Cuts a node off the network, and back",
                      "  godwit local link n2 down", false, [&l] { return local_link_command(l); });
    link->add_option("node", l.node)->required()->type_name("nX");
    link->add_option("action", l.action, "up or down")
        ->required()
        ->check(CLI::IsMember({"up", "down"}));
    auto* bandwidth = local_command(local, "bandwidth", "Changes the links' bandwidth",
                                    "  godwit local bandwidth 100mbit\n  godwit local bandwidth 0",
                                    false, [&l] { return local_bandwidth_command(l); });
    bandwidth->add_option("rate", l.bandwidth, "0: no limit")->required()->type_name("RATE");
  }

  void build_help() {
    auto* help = app_.add_subcommand("help", "Help on a command; exit-codes; man");
    help->footer(
        "Examples:\n"
        "  godwit help migrate\n"
        "  godwit help exit-codes         what godwit exits with\n"
        "  godwit help man --into DIR     writes the manual pages there");
    help->add_option("topic", help_topic_, "Command, exit-codes or man")->type_name("TOPIC");
    help->add_option("--into", man_directory_, "Of man: a directory for all pages")
        ->type_name("DIR");
    help->callback([this] { line_.command = help_on(help_topic_); });
  }

  // The text is made now: the definition of the command line doesn't outlive the parsing.
  std::function<int()> help_on(const std::string& topic) {
    if (topic == "exit-codes") return help_exit_codes;
    if (topic == "man")
      return [pages = man_pages(app_), to = man_directory_] { return write_man_pages(pages, to); };
    const CLI::App* about = topic.empty() ? &app_ : nullptr;
    for (const CLI::App* command : app_.get_subcommands([](const CLI::App*) { return true; }))
      if (command->get_name() == topic) about = command;
    if (about == nullptr)
      return [topic] {
        fmt::print(stderr, "godwit: help: there is no command {}\n", topic);
        return static_cast<int>(Exit::usage);
      };
    const std::string name = topic.empty() ? "godwit" : "godwit " + topic;
    return [text = app_.get_formatter()->make_help(about, name, CLI::AppFormatMode::Normal)] {
      fmt::print("{}", text);
      return 0;
    };
  }

  // `directory` empty: the first one, on stdout.
  static int write_man_pages(const std::vector<std::pair<std::string, std::string>>& pages,
                             const std::string& directory) {
    if (directory.empty()) {
      fmt::print("{}", pages.front().second);
      return 0;
    }
    for (const auto& [file, text] : pages) {
      if (auto written = replace_file(directory + "/" + file, text, false); !written.ok()) {
        fmt::print(stderr, "godwit: {}\n", written.error().what());
        return static_cast<int>(Exit::failed);
      }
    }
    return 0;
  }

  CLI::App& app_;
  CommandLine& line_;
  Options& o_;
  std::string help_topic_, man_directory_;
};

}  // namespace

bool parse_command_line(const std::vector<std::string>& arguments, CommandLine& line, int& code) {
  CLI::App app("", "godwit");
  Builder builder(app, line);  // Its callbacks run while parsing.
  builder.build();
  // What follows "--" is the program's, whatever it looks like.
  const auto dashes = std::find(arguments.begin(), arguments.end(), "--");
  if (dashes != arguments.end()) line.options.argv.assign(dashes + 1, arguments.end());
  std::vector<std::string> reversed(arguments.begin(), dashes);
  std::reverse(reversed.begin(), reversed.end());
  try {
    app.parse(reversed);
  } catch (const CLI::RequiredError& error) {
    const std::vector<std::string> unknown = app.remaining();
    if (unknown.empty())
      app.exit(error);
    else
      fmt::print(stderr, "godwit: there is no command {}; `godwit --help` lists them\n",
                 unknown[0]);
    code = static_cast<int>(Exit::usage);
    return false;
  } catch (const CLI::ParseError& error) {
    code = app.exit(error) == 0 ? 0 : static_cast<int>(Exit::usage);
    return false;
  }
  return true;
}

}  // namespace godwit::cli
