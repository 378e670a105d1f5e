// Many pictures drawn by the small network alone, of which the best are drawn by both; and how often that finds the
// best one: draft_and_keep SMALL LARGE [GROUPS]
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <tstitch/load.hpp>
#include <tstitch/method/dpm_solver.hpp>
#include <tstitch/output/image.hpp>
#include <tstitch/plan/model_schedule.hpp>
#include <tstitch/sampler/draft_and_keep.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "common/flops.hpp"

namespace {

using Networks = std::vector<tstitch::Network>;

constexpr std::int64_t drafts = 8;  // of which one is kept

// How colourful pictures look (Hasler and Suesstrunk 2003, equation 3): the deviation and the mean of two differences
// of colours.
at::Tensor colourfulness(at::Tensor const& images) {
  const at::Tensor red = images.select(1, 0), green = images.select(1, 1), blue = images.select(1, 2);
  const at::Tensor a = red.sub(green).flatten(1), b = red.add(green).div(2).sub(blue).flatten(1);
  return a.var(1).add(b.var(1)).sqrt().add(a.mean(1).square().add(b.mean(1).square()).sqrt(), 0.3);
}

// How far neighbours differ: what is fine in a picture, which the last steps make.
at::Tensor sharpness(at::Tensor const& images) {
  const std::int64_t width = images.size(3);
  return images.narrow(3, 1, width - 1).sub(images.narrow(3, 0, width - 1)).abs().flatten(1).mean(1);
}

// By how much a network predicts the noise in a picture better when it is told the class, at three levels: the
// evidence of a diffusion classifier (Li et al. 2023, arXiv 2303.16203) for the class against none.
struct ClassEvidence {
  static constexpr int evaluations = 6;  // rows a picture

  at::Tensor operator()(tstitch::DraftBatch const& batch) const {
    const std::vector<std::int64_t> labels(batch.labels.begin(), batch.labels.end()),
        none(labels.size(), *network.info().null_class);
    const at::Tensor noise = tstitch::noise({batch.seeds.begin(), batch.seeds.end()}, tstitch::NoiseAddress::of_step(0),
                                            batch.images.sizes().slice(1), batch.images.options());
    const auto error = [&](std::vector<std::int64_t> const& told, double t) {
      const tstitch::NoiseLevel level = network.noise_schedule().at(t);
      const at::Tensor x = tstitch::weighted_sum(level.alpha, batch.images, level.sigma, noise);
      tstitch::BatchCondition condition;
      condition.conditional.labels = at::tensor(told).to(x.device());
      condition.conditional.host_labels = told;
      const tstitch::Prediction prediction =
          tstitch::denoise(network, x, tstitch::Timestep{t, level}, condition, 1, 0, tstitch::Thresholding::none());
      return prediction.x_0.sub(batch.images).mul(level.alpha / level.sigma).square().flatten(1).mean(1);
    };
    at::Tensor evidence = batch.images.new_zeros({batch.images.size(0)});
    for (const double t : {300.0, 500.0, 700.0}) evidence = evidence.add(error(none, t)).sub(error(labels, t));
    return evidence;
  }

  tstitch::Network network;
};

// Sixteen horses by the small network alone, of which the two most colourful are drawn by both.
void keep_the_best(Networks const& networks) {
  const auto noise_schedule = networks[0].noise_schedule();
  const tstitch::DPMSolver draft{noise_schedule, tstitch::SingleNetwork{0}, {.steps = 5}};
  const tstitch::DPMSolver full{noise_schedule, tstitch::Stitch{.ratio = 0.4}, {.steps = 10}};
  const tstitch::Request request{.labels = {7}, .count = 16, .seed = 1};
  const tstitch::KeptDrafts kept = tstitch::draft_and_keep(draft, full, networks, request, colourfulness, {.keep = 2});
  tstitch::write_grid("kept.png", kept.samples.images);

  const double worst = *std::min_element(kept.scores.begin(), kept.scores.end());
  std::printf("kept: %zu of %zu, the best first %d\n", kept.positions.size(), kept.scores.size(),
              kept.scores[std::size_t(kept.positions[0])] >= kept.scores[std::size_t(kept.positions[1])] &&
                  kept.scores[std::size_t(kept.positions[1])] > worst);
  for (tstitch::DraftWork const& work : kept.work) {
    std::printf("rows: %d for drafts, %d for those kept\n", int(work.drafts), int(work.kept));
  }
}

// The best of each class, where the first steps of drafts are those of the pictures too and so are taken once.
void keep_of_each_class(Networks const& networks) {
  const tstitch::SamplingOptions options{.steps = 4};
  const tstitch::DPMSolver draft{networks[0].noise_schedule(), tstitch::SingleNetwork{0}, options};
  const tstitch::DPMSolver full{networks[0].noise_schedule(), tstitch::Stitch{.ratio = 0.5}, options};
  tstitch::Request request{.labels = {3, 3, 3, 5, 5, 5}, .batch_size = 8, .pad_batches = true};
  const tstitch::DraftScorer scorer = ClassEvidence{networks[0]};
  const tstitch::DraftOptions best_of_each{.keep = 1, .groups = request.labels};
  const tstitch::KeptDrafts kept = tstitch::draft_and_keep(draft, full, networks, request, scorer, best_of_each);

  request.labels = {3, 5};
  request.seeds = kept.samples.seeds;
  std::printf("each class: %d steps taken once, the same bits %d\n", kept.shared_steps,
              kept.samples.images.equal(full.sample(networks, request).images));
}

// What is counted of a score and a kind of drafts, over all groups.
struct Found {
  std::string name;
  double cost = 0;                              // of drafting, scoring and one picture, in pictures
  int best = 0;                                 // groups in which the best draft is the best picture
  double gained = 0, possible = 0;              // by the best draft's picture over the mean one, and by the best one
  double best_at_cost = 0, gained_at_cost = 0;  // where as much is spent on pictures alone
};

// The mean of the largest of m out of all scores.
double largest_of(std::vector<double> scores, std::size_t m) {
  std::sort(scores.begin(), scores.end(), std::greater());
  const double n = double(scores.size());
  double left = 1, mean = 0;  // the probability that none of those before was drawn
  for (std::size_t i = 0; i < scores.size() && left > 0; ++i) {
    const double drawn = double(m) / (n - double(i));
    mean += left * std::min(1.0, drawn) * scores[i];
    left *= std::max(0.0, 1 - drawn);
  }
  return mean;
}

void add(Found& found, std::vector<double> const& of_drafts, std::vector<double> const& of_pictures) {
  const auto place_of_best = [](std::vector<double> const& scores) {
    return std::size_t(std::max_element(scores.begin(), scores.end()) - scores.begin());
  };
  const std::size_t chosen = place_of_best(of_drafts), best = place_of_best(of_pictures);
  const double n = double(of_pictures.size()), mean = std::accumulate(of_pictures.begin(), of_pictures.end(), 0.0) / n;
  found.best += chosen == best;
  found.gained += of_pictures[chosen] - mean;
  found.possible += of_pictures[best] - mean;
  const double pictures = std::min(found.cost, n), whole = std::floor(pictures);
  const double less = largest_of(of_pictures, std::size_t(whole)),
               more = largest_of(of_pictures, std::min(std::size_t(whole) + 1, of_pictures.size()));
  found.best_at_cost += pictures / n;
  found.gained_at_cost += less + (pictures - whole) * (more - less) - mean;
}

// Operations of a row of a network.
double flop_of_row(std::string const& file, tstitch::Network const& network) {
  auto const& info = network.info();
  const at::Tensor x = at::zeros({1, info.channels, info.height, info.width});
  const tstitch::Condition condition{.labels = at::tensor({std::int64_t(0)})};
  return flop_of(tstitch::load_torchscript_module(file), info, x, at::tensor({std::int64_t(500)}), condition);
}

// How often the best draft is the best picture, beside as many operations spent on pictures alone.
void measure(Networks const& networks, std::vector<std::string> const& files, int groups) {
  const auto noise_schedule = networks[0].noise_schedule();
  const tstitch::AnySampler full = tstitch::DPMSolver{noise_schedule, tstitch::Stitch{.ratio = 0.4}, {.steps = 10}};
  const double small = flop_of_row(files[0], networks[0]), large = flop_of_row(files[1], networks[1]);
  const auto cost_of = [&](tstitch::AnySampler const& sampler) {
    const auto work = sampler.plan().work(2);
    return work[0].rows * small + work[1].rows * large;
  };
  std::vector<std::pair<std::string, tstitch::DraftScorer>> scorers;
  scorers.emplace_back("colourfulness", colourfulness);
  scorers.emplace_back("class evidence", ClassEvidence{networks[0]});
  scorers.emplace_back("sharpness", sharpness);
  std::vector<tstitch::AnySampler> samplers;
  std::vector<Found> all;
  for (const int steps : {5, 10}) {
    samplers.push_back(tstitch::DPMSolver{noise_schedule, tstitch::SingleNetwork{0}, {.steps = steps}});
    for (auto const& [name, scorer] : scorers) {
      const double scoring = name == "class evidence" ? ClassEvidence::evaluations * small : 0;
      all.push_back({name + ", " + std::to_string(steps) + " steps",
                     1 + double(drafts) * (cost_of(samplers.back()) + scoring) / cost_of(full)});
    }
  }
  for (int group = 0; group < groups; ++group) {
    const tstitch::Request request{.labels = {group % 10}, .count = drafts, .seed = std::uint64_t(group * drafts)};
    const std::vector<std::int64_t> labels(std::size_t(drafts), group % 10);
    const auto score = [&](tstitch::DraftScorer const& scorer, tstitch::Samples const& samples) {
      return scorer({samples.images, 0, samples.seeds, labels});
    };
    const tstitch::Samples pictures = full.sample(networks, request);
    auto found = all.begin();
    for (tstitch::AnySampler const& sampler : samplers) {
      const tstitch::Samples drafted = sampler.sample(networks, request);
      for (auto const& [name, scorer] : scorers) add(*found++, score(scorer, drafted), score(scorer, pictures));
    }
  }
  std::printf("the best of %d, %d %s: how often it is found, and how much of its lead over the mean picture\n",
              int(drafts), groups, groups == 1 ? "group" : "groups");
  for (Found const& found : all) {
    std::printf("%-26s %3.0f %% %5.2f   as much spent on %.2f pictures: %3.0f %% %5.2f\n", found.name.c_str(),
                100.0 * found.best / groups, found.gained / found.possible, found.cost,
                100 * found.best_at_cost / groups, found.gained_at_cost / found.possible);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  const std::vector<std::string> files{argv[1], argv[2]};
  const Networks networks = tstitch::load_networks(files);
  keep_the_best(networks);
  keep_of_each_class(networks);
  measure(networks, files, argc > 3 ? std::max(1, std::atoi(argv[3])) : 1);
}
