// Classify photographs in C++ with OpenVINO and nothing else; README.md says how it is compiled.
//
//     classify deit.pruned.onnx cat.ppm dog.ppm
//
// Files written by corp-onnx carry how photographs are prepared for them, and their class names where those are known.
// A photograph is a binary PPM, which every program for images writes; its preparation runs inside of the model.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <numeric>
#include <openvino/openvino.hpp>
#include <regex>
#include <stdexcept>
#include <string>
#include <vector>

constexpr std::size_t n_shown = 5;

struct Photograph {
    std::size_t height, width;
    std::vector<std::uint8_t> pixels;  // [height, width, 3]
};

struct Recipe {
    std::size_t height, width;            // of the crop
    std::size_t full_height, full_width;  // that the photograph covers before it
    bool square;
    std::string interpolation;
    std::vector<float> mean, std;
};

Photograph read_photograph(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string magic;
    Photograph photograph{};
    int largest = 0;
    file >> magic >> photograph.width >> photograph.height >> largest;
    file.get();  // one blank behind the numbers
    if (!file || magic != "P6" || largest != 255)
        throw std::runtime_error(path + ": expected a binary PPM of 8 bits (P6)");
    photograph.pixels.resize(photograph.height * photograph.width * 3);
    const auto n_bytes = static_cast<std::streamsize>(photograph.pixels.size());
    file.read(reinterpret_cast<char*>(photograph.pixels.data()), n_bytes);
    if (!file) throw std::runtime_error(path + ": ends within its pixels");
    return photograph;
}

// The value of a key of one flat JSON object, as it is written; empty where there is none.
std::string find_value(const std::string& json, const std::string& key) {
    std::smatch found;
    const std::regex pattern("\"" + key + "\"\\s*:\\s*(\\[[^\\]]*\\]|\"[^\"]*\"|[^,}\\s]+)");
    return std::regex_search(json, found, pattern) && found[1] != "null" ? found[1].str() : "";
}

std::vector<float> find_numbers(const std::string& json, const std::string& key) {
    const std::string value = find_value(json, key);
    const std::regex number("-?[0-9][0-9.eE+-]*");
    std::vector<float> numbers;
    for (std::sregex_iterator at(value.begin(), value.end(), number), end; at != end; ++at)
        numbers.push_back(std::stof(at->str()));
    return numbers;
}

// What the model says of its photographs, in ONNX's metadata.
std::string find_metadata(const ov::Model& model, const std::string& key) {
    return model.has_rt_info("framework", key) ? model.get_rt_info<std::string>("framework", key) : "";
}

Recipe read_recipe(const ov::Model& model) {
    const std::string json = find_metadata(model, "corp_onnx.preprocessing");
    if (json.empty())
        throw std::runtime_error("the model does not say how photographs are prepared (corp_onnx.preprocessing)");
    const std::string fit = find_value(json, "fit");
    if ((fit != "" && fit != "\"cover\"") || find_value(json, "channels") != "\"RGB\"")
        throw std::runtime_error("this program prepares RGB photographs that cover the crop; the model wants others");
    Recipe recipe{};
    const auto size = find_numbers(json, "size"), resize = find_numbers(json, "resize");
    const auto share = find_numbers(json, "crop_pct");
    recipe.height = static_cast<std::size_t>(size.at(0));
    recipe.width = static_cast<std::size_t>(size.at(1));
    const auto cover = [&](std::size_t i) {
        return resize.empty() ? std::floor(size[i] / share.at(0)) : resize[std::min(i, resize.size() - 1)];
    };
    recipe.full_height = static_cast<std::size_t>(cover(0));
    recipe.full_width = static_cast<std::size_t>(cover(1));
    recipe.square = recipe.full_height == recipe.full_width;
    recipe.interpolation = find_value(json, "interpolation");
    recipe.mean = find_numbers(json, "mean");
    recipe.std = find_numbers(json, "std");
    return recipe;
}

// A side of the photograph once it covers the crop: cut to whole pixels as torchvision does, or rounded as timm does.
std::size_t scale_side(std::size_t side, double scale, std::size_t goal, bool square) {
    const double exact = static_cast<double>(side) * scale;
    if (exact <= static_cast<double>(goal)) return goal;
    return static_cast<std::size_t>(square ? std::floor(exact) : std::nearbyint(exact));
}

// The model with the preparation of a photograph of this size in front of it.
ov::CompiledModel compile(ov::Core& core, const std::shared_ptr<ov::Model>& model, const Recipe& recipe,
                          const Photograph& photograph) {
    const double scale = std::max(static_cast<double>(recipe.full_height) / static_cast<double>(photograph.height),
                                  static_cast<double>(recipe.full_width) / static_cast<double>(photograph.width));
    const auto height = scale_side(photograph.height, scale, recipe.full_height, recipe.square);
    const auto width = scale_side(photograph.width, scale, recipe.full_width, recipe.square);
    const int size[] = {static_cast<int>(recipe.height), static_cast<int>(recipe.width)};
    const int top = static_cast<int>(std::nearbyint((static_cast<double>(height) - size[0]) / 2));
    const int left = static_cast<int>(std::nearbyint((static_cast<double>(width) - size[1]) / 2));
    const auto how = recipe.interpolation == "\"bilinear\"" ? ov::preprocess::ResizeAlgorithm::RESIZE_BILINEAR_PILLOW
                                                            : ov::preprocess::ResizeAlgorithm::RESIZE_BICUBIC_PILLOW;
    std::vector<float> mean = recipe.mean, std = recipe.std;
    for (auto* numbers : {&mean, &std})
        for (float& number : *numbers) number *= 255;
    ov::preprocess::PrePostProcessor prepare(model->clone());
    const ov::PartialShape shape{1, static_cast<int64_t>(photograph.height), static_cast<int64_t>(photograph.width), 3};
    prepare.input().tensor().set_element_type(ov::element::u8).set_layout("NHWC").set_shape(shape);
    prepare.input().model().set_layout("NCHW");
    prepare.input().preprocess().resize(how, height, width);
    prepare.input().preprocess().crop({0, top, left, 0}, {1, top + size[0], left + size[1], 3});
    prepare.input().preprocess().convert_element_type(ov::element::f32).mean(mean).scale(std);
    return core.compile_model(prepare.build(), "CPU", ov::hint::inference_precision(ov::element::f32));
}

std::vector<std::string> read_labels(const std::string& json) {
    const std::regex text("\"((?:[^\"\\\\]|\\\\.)*)\"");
    std::vector<std::string> labels;
    for (std::sregex_iterator at(json.begin(), json.end(), text), end; at != end; ++at) labels.push_back((*at)[1]);
    return labels;
}

void print_answers(const ov::Tensor& logits, const std::vector<std::string>& labels) {
    const float* values = logits.data<const float>();
    const std::size_t n = logits.get_size();
    std::vector<std::size_t> order(n);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return values[a] > values[b]; });
    double total = 0;
    for (std::size_t i = 0; i < n; ++i) total += std::exp(static_cast<double>(values[i]) - values[order[0]]);
    for (std::size_t i = 0; i < std::min(n, n_shown); ++i) {
        const std::size_t idx = order[i];
        const double share = std::exp(static_cast<double>(values[idx]) - values[order[0]]) / total;
        const std::string name = idx < labels.size() ? labels[idx] : std::to_string(idx);
        std::printf("  %5.1f%%  %s\n", 100 * share, name.c_str());
    }
}

int main(int argc, char** argv) {
    if (argc < 3) {
        std::cerr << "usage: classify MODEL.onnx PHOTOGRAPH.ppm...\n";
        return 2;
    }
    try {
        ov::Core core;
        const auto model = core.read_model(argv[1]);
        const auto recipe = read_recipe(*model);
        const auto labels = read_labels(find_metadata(*model, "corp_onnx.labels"));
        for (int i = 2; i < argc; ++i) {
            auto photograph = read_photograph(argv[i]);
            auto request = compile(core, model, recipe, photograph).create_infer_request();
            const ov::Shape shape{1, photograph.height, photograph.width, 3};
            request.set_input_tensor(ov::Tensor(ov::element::u8, shape, photograph.pixels.data()));
            request.infer();
            std::cout << argv[i] << std::endl;
            print_answers(request.get_output_tensor(0), labels);
        }
    } catch (const std::exception& error) {
        std::cerr << "classify: " << error.what() << "\n";
        return 2;
    }
}
