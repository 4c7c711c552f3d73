#include "migrate/commit.h"

namespace godwit::migrate {

SourceAction decide(SourceState journal) {
  switch (journal) {
    case SourceState::attempting:
    case SourceState::kept:
      return SourceAction::thaw;
    case SourceState::given_up:
      return SourceAction::ask;
    case SourceState::released:
      return SourceAction::destroy;
  }
  return SourceAction::ask;
}

SourceAction decide(SourceState journal, Answer answer) {
  if (journal != SourceState::given_up) return decide(journal);
  switch (answer) {
    case Answer::running:
      return SourceAction::destroy;
    case Answer::refused:
      return SourceAction::thaw;
    case Answer::lost:
      return SourceAction::lost;
    case Answer::draining:
      return SourceAction::serve;
  }
  return SourceAction::ask;
}

QueryStep on_query(TargetState record, bool rebooted_since) {
  switch (record) {
    case TargetState::offered:
      return {.refuse_first = true, .answer = Answer::refused};
    case TargetState::refused:
      return {.refuse_first = false, .answer = Answer::refused};
    case TargetState::granted:
      return {.refuse_first = false, .answer = rebooted_since ? Answer::lost : Answer::running};
    case TargetState::draining:
      return {.refuse_first = false, .answer = rebooted_since ? Answer::lost : Answer::draining};
  }
  return {.refuse_first = true, .answer = Answer::refused};
}

TargetAction decide(TargetState record, bool rebooted_since) {
  switch (record) {
    case TargetState::offered:
      return TargetAction::refuse_and_destroy;
    case TargetState::refused:
      return TargetAction::destroy;
    case TargetState::granted:
      return rebooted_since ? TargetAction::destroy : TargetAction::run;
    case TargetState::draining:
      return rebooted_since ? TargetAction::destroy : TargetAction::run_and_drain;
  }
  return TargetAction::refuse_and_destroy;
}

std::string_view name(SourceState state) {
  switch (state) {
    case SourceState::attempting:
      return "attempting";
    case SourceState::given_up:
      return "given_up";
    case SourceState::kept:
      return "kept";
    case SourceState::released:
      return "released";
  }
  return "unknown";
}

std::string_view name(TargetState state) {
  switch (state) {
    case TargetState::offered:
      return "offered";
    case TargetState::granted:
      return "granted";
    case TargetState::refused:
      return "refused";
    case TargetState::draining:
      return "draining";
  }
  return "unknown";
}

std::string_view name(Answer answer) {
  switch (answer) {
    case Answer::running:
      return "running";
    case Answer::refused:
      return "refused";
    case Answer::lost:
      return "lost";
    case Answer::draining:
      return "draining";
  }
  return "unknown";
}

}  // namespace godwit::migrate
