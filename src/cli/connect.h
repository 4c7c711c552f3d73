// What every command does: find the daemon, call it, report an error.
#pragma once

#include <memory>
#include <string>

#include "cli/commands.h"
#include "cli/json.h"
#include "rpc/client.h"

namespace godwit::cli {

// Null, with the reason printed and `code` set, if nobody listens.
std::unique_ptr<rpc::ApiClient> connect(const Options& options, int& code);

void print_json(const Json& json);
int fail(const Options& options, const Error& error);  // Prints; the exit code.
int usage(const std::string& text);

// Connects, calls, reports an error. `done` prints and gives the exit code.
template <typename Reply, typename Request, typename Done>
int call(const Options& options, const Request& request,
         Result<Reply> (rpc::Api::*method)(const rpc::Call&, const Request&), Done&& done) {
  int code = 0;
  auto client = connect(options, code);
  if (!client) return code;
  auto reply = (client.get()->*method)(rpc::Call(), request);
  if (!reply.ok()) return fail(options, reply.error());
  return done(*reply);
}

}  // namespace godwit::cli
