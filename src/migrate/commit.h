// Who may run a capsule when everything can fail: the rules of the commit, without I/O.
//
// At most one copy runs at any time, exactly one as soon as the two nodes can talk. The rules:
//
//   source journal:  attempting -> given_up -> released      target record:  offered -> granted
//                    attempting -> kept                                      offered -> refused
//                    given_up   -> kept   (only after `refused`)             offered -> draining ->
//                    granted
//
// 1. The source records given_up before it sends the grant. Until then it may always keep its copy.
// 2. The target records granted, durably, before the first instruction; refused is as durable, and
//    whichever comes first is final: both are a compare-and-set from offered, under a file lock.
// 3. Once given_up, the source acts only on the target's recorded answer. A query turns offered
//    into refused: so an answer always exists once the nodes can talk, and a grant that arrives
//    late finds `refused`.
// 4. The target may refuse by itself at any time before granted (its worker died, the link ended).
//    So the target is never in doubt; only the source can be.
// 5. `draining` is granted, with pages still on the source (post-copy). The source then keeps its
//    frozen copy for no other use than to be read, until the target records granted.
//
// What must survive what: the journal is on /run. It protects a frozen tree, and both are lost by
// the same reboot. The target's record is synced to disk: after a reboot of the target the source
// must be told whether its capsule ran there, though that copy is gone.
//
// commit_model_test.cc walks every interleaving of these rules with lost messages, deaths of
// workers and daemons and reboots.
#pragma once

#include <cstdint>
#include <string_view>

namespace godwit::migrate {

enum class SourceState : std::uint32_t { attempting = 1, given_up = 2, kept = 3, released = 4 };
enum class TargetState : std::uint32_t { offered = 1, granted = 2, refused = 3, draining = 4 };

// What a target says about an epoch.
enum class Answer : std::uint32_t {
  running = 1,   // Granted here; it runs, ran to its end, or has moved on.
  refused = 2,   // Recorded: this epoch never started here and never will.
  lost = 3,      // Granted here, then the node rebooted: the copy is gone, it had run.
  draining = 4,  // It runs here and needs pages that are still on the source.
};

enum class SourceAction : std::uint32_t {
  thaw,     // Our copy goes on.
  destroy,  // The copy on the target is the one.
  serve,    // The copy on the target is the one; ours must be read from until that has all pages.
  ask,      // In doubt: ask (again).
  lost,     // It ran on the target and died with that node; ours is older than what others saw.
};

// After the worker is gone, or the reply to a grant did not come. Nothing else decides.
SourceAction decide(SourceState journal);
SourceAction decide(SourceState journal, Answer answer);

// What a target must record (a compare-and-set) before it answers a query.
struct QueryStep {
  bool refuse_first;  // Turn offered into refused, then look again.
  Answer answer;      // Valid if !refuse_first.
};
QueryStep on_query(TargetState record, bool rebooted_since);

// A target's restarted daemon, or one whose worker died: what becomes of the shell here.
enum class TargetAction : std::uint32_t { run, run_and_drain, refuse_and_destroy, destroy };
TargetAction decide(TargetState record, bool rebooted_since);

std::string_view name(SourceState state);
std::string_view name(TargetState state);
std::string_view name(Answer answer);

}  // namespace godwit::migrate
