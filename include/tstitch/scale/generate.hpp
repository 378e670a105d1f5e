/// @file
/// Work on ranges of indices until all are done, whoever does them.
#pragma once

#include <optional>
#include <utility>

#include "ranges.hpp"

namespace tstitch {

/// Takes range after range, works on it, and waits for the others at the end, to take what they leave.
///
/// What is written into files is written by `work`: of a range that is done again, as that of a worker that has gone,
/// it is the same once more. What is added up, such as the statistics of a metric, belongs into `counted`: that is
/// called once for each range, by one of all workers.
/// @param work `std::optional<Result> (IndexRange const&)`; nothing: this worker is to stop, and gives the range back
/// @param counted `void (IndexRange const&, Result)`
/// @param wait `bool ()`, called where others have all that is left; sleeps a little; false: this worker is to stop
/// @returns whether all are finished, and not stopped
/// @throws what these throw, with the range given back
template <WorkerStore Store, class Work, class Counted, class Wait>
bool generate(Ranges<Store>& ranges, Work work, Counted counted, Wait wait) {
  for (;;) {
    const std::optional<IndexRange> range = ranges.take();
    if (!range) {
      if (ranges.finished()) return true;
      if (!wait()) return false;
      continue;
    }
    decltype(work(*range)) result;
    try {
      result = work(*range);
    } catch (...) {
      try {
        ranges.give_back(*range);
      } catch (...) {  // of a store that is gone; what went wrong first is thrown
      }
      throw;
    }
    if (!result) {
      ranges.give_back(*range);
      return false;
    }
    if (ranges.finish(*range)) counted(*range, *std::move(result));
  }
}

}  // namespace tstitch
