// What each command does, once its line has been understood (main.cc).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/endpoint.h"

namespace godwit::cli {

struct Options {
  EndpointOptions endpoint;
  bool json = false;

  std::string capsule;  // Most commands: which one.
  std::string target;   // migrate, can-migrate

  // run
  std::string run_node;
  std::string name;
  bool detach = false;
  bool tty = false;
  bool keep_stdin = false;
  double cpus = 0;
  std::vector<std::string> env;
  std::string cwd;
  std::string user;
  bool cpu_baseline = false;
  std::vector<std::string> argv;

  bool all = false;       // ps
  bool follow = false;    // logs
  bool no_stdin = false;  // attach
  bool take_over = false;
  double timeout_s = 0;  // wait; 0: for ever
  std::string signal;
  std::string mode = "auto";
  std::string downtime_target;
  std::uint32_t limit = 0;  // history
  std::string doctor_node;
  std::string lost_node;
  bool quiet = false;  // migrate: no progress
};

int run_command(const Options& options);
int ps_command(const Options& options);
int nodes_command(const Options& options);
int logs_command(const Options& options);
int attach_command(const Options& options);
int wait_command(const Options& options);
int signal_command(const Options& options);
int kill_command(const Options& options);
int freeze_command(const Options& options, bool frozen);
int migrate_command(const Options& options);
int can_migrate_command(const Options& options);
int history_command(const Options& options);
int doctor_command(const Options& options);
int resolve_command(const Options& options);
int remove_command(const Options& options);
int help_exit_codes();

// The environment that a program gets: this one without GODWIT_*, then K=V of `extra`; K alone
// takes the value from here. For another user his own HOME, USER, LOGNAME, SHELL are left to the
// daemon's node.
std::vector<std::string> program_environment(const char* const* environment,
                                             const std::vector<std::string>& extra,
                                             bool other_user);

// "TERM", "SIGTERM", "15"; 0: none of these.
int parse_signal(const std::string& text);
// "10ms", "500us", "1.5s"; plain numbers are milliseconds. -1: none of these.
std::int64_t parse_duration_us(const std::string& text);

}  // namespace godwit::cli
