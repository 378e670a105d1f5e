// Prompts to pictures, by a folder of export_pipeline.py: pipeline FOLDER PROMPT...
#include <tstitch/output/image.hpp>
#include <tstitch/pipeline.hpp>

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  const tstitch::Pipeline pipeline = tstitch::load_pipeline(argv[1]);
  tstitch::write_grid("pipeline.png", pipeline.draw({.prompts = {argv + 2, argv + argc}, .seed = 7}));
}
