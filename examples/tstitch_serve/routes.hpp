/// @file
/// What a client may ask, and what it is answered.
#pragma once

#include <algorithm>
#include <array>
#include <exception>
#include <iostream>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "connection.hpp"
#include "fields.hpp"
#include "page.hpp"
#include "service.hpp"

/// Whether two texts are the same, in a time that does not depend on where they differ.
inline bool same_in_constant_time(std::string_view given, std::string_view secret) {
  unsigned differs = given.size() != secret.size();
  for (std::size_t i = 0; i < given.size(); ++i) {
    differs |= unsigned(static_cast<unsigned char>(given[i]) ^ static_cast<unsigned char>(secret[i % secret.size()]));
  }
  return differs == 0;
}

inline std::string error_text(int status, std::string const& place, std::string const& message) {
  return text_of(Json{{"error", {{"status", status}, {"place", place}, {"message", message}}}}) + "\n";
}

inline void answer_error(httplib::Response& response, int status, std::string const& place,
                         std::string const& message) {
  response.status = status;
  if (status == 503) response.set_header("Retry-After", "1");
  response.set_content(error_text(status, place, message), "application/json");
}

/// A response to what cannot be read as a request.
inline std::string bare_response(int status, std::string const& place, std::string const& message) {
  const std::string body = error_text(status, place, place + ": " + message);
  const std::string reason = status == 408   ? "Request Timeout"
                             : status == 431 ? "Request Header Fields Too Large"
                                             : "Service Unavailable";
  return "HTTP/1.1 " + std::to_string(status) + " " + reason +
         "\r\nConnection: close\r\nContent-Type: application/json\r\n" + (status == 503 ? "Retry-After: 1\r\n" : "") +
         "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
}

class Routes {
 public:
  /// @param token empty: anybody may ask
  Routes(Service& service, std::string token) : service_(service), token_(std::move(token)) {}

  void add_to(Server& server) {
    using httplib::Request, httplib::Response;
    using Handled = httplib::Server::HandlerResponse;
    server.set_pre_routing_handler([this](Request const& request, Response& response) {
      try {
        admit(request, response);
      } catch (Refusal const& refusal) {
        answer_error(response, refusal.status(), refusal.place(), refusal.what());
        return Handled::Handled;
      }
      return Handled::Unhandled;
    });
    const httplib::Server::HandlerWithResponse said = [this](Request const&, Response& response) {
      if (response.body.empty()) explain(response);
      return Handled::Unhandled;
    };
    server.set_error_handler(said);
    server.set_exception_handler([](Request const&, Response& response, auto const&) {
      answer_error(response, 500, "service", "service: must be able to answer, got an error of its own");
    });
    server.set_logger(
        [this](Request const&, Response const& response) { service_.metrics().responded(response.status); });
    server.Get("/", [](Request const&, Response& response) {
      response.set_header("Content-Security-Policy",
                          "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; "
                          "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'");
      response.set_content(page, "text/html; charset=utf-8");
    });
    server.Get("/healthz", [this](Request const&, Response& response) {
      if (!service_.takes()) return answer_error(response, 503, "service", "service: must be running, stops");
      response.set_content(text_of(Json{{"status", "ready"}}) + "\n", "application/json");
    });
    server.Get("/metrics", [this](Request const&, Response& response) {
      response.set_content(service_.metrics().text(service_.batcher(), service_.drawings()),
                           "text/plain; version=0.0.4; charset=utf-8");
    });
    server.Get("/v1/networks", [this](Request const&, Response& response) {
      response.set_content(text_of(service_.describe(), 1) + "\n", "application/json");
    });
    server.Post("/v1/pictures", [this](Request const& request, Response& response) { draw(request, response); });
    server.set_default_headers({{"X-Content-Type-Options", "nosniff"}, {"Cache-Control", "no-store"}});
  }

 private:
  struct Path {
    std::string_view path;
    bool posted;  ///< else got
    bool free;    ///< without a token
  };
  static constexpr std::array paths = std::to_array<Path>({{"/", false, true},
                                                           {"/healthz", false, true},
                                                           {"/metrics", false, false},
                                                           {"/v1/networks", false, false},
                                                           {"/v1/pictures", true, false}});

  /// Before the body is read.
  /// @throws Refusal
  void admit(httplib::Request const& request, httplib::Response& response) const {
    const auto path = std::ranges::find(paths, request.path, &Path::path);
    if (path == paths.end()) {
      std::vector<std::string> all;
      for (Path const& each : paths) all.emplace_back(each.path);
      throw Refusal(404, "path", "must be one of " + joined(all) + ", got " + in_quotes(request.path));
    }
    if (path->posted ? request.method != "POST" : request.method != "GET" && request.method != "HEAD") {
      const std::string allowed = path->posted ? "POST" : "GET, HEAD";
      response.set_header("Allow", allowed);
      throw Refusal(405, "method", "must be " + allowed + ", got " + in_quotes(request.method));
    }
    if (!path->free && !token_.empty()) require_token(request, response);
    if (!request.params.empty()) {
      throw Refusal(400, "query", "must be empty, got " + in_quotes(request.params.begin()->first));
    }
    if (path->posted) require_body(request);
  }

  void require_token(httplib::Request const& request, httplib::Response& response) const {
    const std::string given = request.get_header_value("Authorization");
    constexpr std::string_view scheme = "bearer ";
    const bool bearer = in_lower_case(given.substr(0, scheme.size())) == scheme;
    if (bearer && same_in_constant_time(std::string_view(given).substr(scheme.size()), token_)) return;
    response.set_header("WWW-Authenticate", "Bearer");
    throw Refusal(401, "Authorization",
                  std::string("must be Bearer and the token of this service, got ") + (given.empty() ? "none"
                                                                                       : bearer      ? "another token"
                                                                                                : "another scheme"));
  }

  void require_body(httplib::Request const& request) const {
    const auto one = [&](char const* name) {
      const std::size_t count = request.get_header_value_count(name);
      if (count > 1) throw Refusal(400, name, "must be there once, got " + std::to_string(count));
      return count == 1;
    };
    if (one("Transfer-Encoding")) throw Refusal(411, "Content-Length", "must be there, got Transfer-Encoding");
    if (one("Content-Encoding")) {
      throw Refusal(415, "Content-Encoding",
                    "must not be there, got " + in_quotes(request.get_header_value("Content-Encoding")));
    }
    if (!one("Content-Length")) throw Refusal(411, "Content-Length", "must be there, got none");
    const std::string length = request.get_header_value("Content-Length");
    const std::optional<std::uint64_t> bytes = number_of<std::uint64_t>(length);
    const bool digits = length.find_first_not_of("0123456789") == std::string::npos;
    if (!bytes || !digits) throw Refusal(400, "Content-Length", "must be a number of bytes, got " + in_quotes(length));
    if (*bytes > std::uint64_t(service_.arguments().most_body)) {
      throw Refusal(413, "body",
                    "must have at most " + std::to_string(service_.arguments().most_body) + " bytes, got " + length);
    }
    one("Content-Type");
    std::string type = request.get_header_value("Content-Type");
    type = in_lower_case(type.substr(0, type.find(';')));
    type.erase(type.find_last_not_of(" \t") + 1);
    if (type != "application/json") {
      throw Refusal(415, "Content-Type", "must be application/json, got " + (type.empty() ? "none" : in_quotes(type)));
    }
  }

  /// What httplib refused by itself.
  void explain(httplib::Response& response) const {
    using Fault = Connection::Fault;
    const Fault fault = Connection::current ? Connection::current->fault() : Fault::none;
    const auto say = [&](int status, std::string const& place, std::string const& rule) {
      answer_error(response, status, place, place + ": " + rule);
    };
    if (fault == Fault::too_slow) {
      return say(408, "request",
                 "must come within " + tstitch::words::text(service_.arguments().client_seconds) + " s");
    }
    if (fault == Fault::too_large) {
      return say(431, "request",
                 "must have at most " + std::to_string(Connection::most_header) + " bytes before the body");
    }
    if (response.status == 413) return say(413, "body", "must be smaller");
    if (response.status == 414) return say(414, "path", "must be shorter");
    if (response.status == 416) return say(416, "Range", "must not be there");
    say(response.status, "request", "must be HTTP/1.1 that is whole, got something else");
  }

  void draw(httplib::Request const& request, httplib::Response& response) {
    const auto counted = std::make_shared<Service::Counted>(service_);
    const auto refuse = [&](int status, std::string const& place, std::string const& message) {
      answer_error(response, status, place, message);
    };
    answered(
        [&] {
          if (!service_.takes()) throw Refusal(503, "service", "must be running, stops");
          if (service_.batcher().waiting() >= std::size_t(service_.arguments().most_waiting)) {
            throw tstitch::BatcherFull("");  // before prompts are encoded
          }
          const std::string accepted = request.get_header_value("Accept");
          const Fields fields(read_body(request.body));
          const Asked asked = fields.asked(accepted.find("image/png") != std::string::npos,
                                           accepted.find("text/event-stream") != std::string::npos);
          const std::shared_ptr<Drawing> drawing = service_.begin(asked);
          if (asked.stream) return stream(drawing, counted, response);
          const tstitch::Samples samples = service_.follow(*drawing, gone, {});
          const std::vector<std::string> files = service_.files_of(*drawing, samples);
          const Json json = service_.answer(*drawing, files);
          service_.metrics().drawn(std::int64_t(files.size()), json["seconds"].get<double>());
          if (drawing->png) {
            response.set_header("Tstitch-Seed", std::to_string(drawing->job.seed(0)));
            response.set_content(files[0], "image/png");
          } else {
            response.set_content(text_of(json) + "\n", "application/json");
          }
        },
        refuse);
  }

  static bool gone() { return Connection::current && Connection::current->gone(); }

  /// What happens, with what goes wrong told as an error.
  /// @param action with no arguments
  /// @param refuse with status, place and message
  template <class Action, class Refuse>
  void answered(Action const& action, Refuse const& refuse) {
    const auto failed = [&](std::string const& why) {
      std::cerr << "tstitch_serve: " + why + "\n";
      refuse(500, "service", "service: must be able to draw, got: " + why);
    };
    try {
      action();
    } catch (Refusal const& refusal) {
      refuse(refusal.status(), refusal.place(), refusal.what());
    } catch (HungUp const&) {
      service_.metrics().hung_up();
      refuse(499, "client", "client: must wait for its pictures, hung up");
    } catch (tstitch::BatcherFull const&) {
      refuse(503, "service",
             "service: must have at most " + std::to_string(service_.arguments().most_waiting) +
                 " requests that wait, got another one");
    } catch (c10::Error const& error) {  // what() would add pages of stack trace
      failed(error.what_without_backtrace());
    } catch (std::exception const& error) {
      // Such as of guidance by 1e300. It may be the networks' own fault, too, so the operator is told.
      const std::string_view why = error.what();
      if (why.find("values must be finite numbers") == std::string_view::npos) return failed(error.what());
      std::cerr << "tstitch_serve: " + std::string(why) + "\n";
      refuse(422, "request", "request: must give values that are finite, got nan or infinity");
    }
  }

  /// Answers with server-sent events.
  void stream(std::shared_ptr<Drawing> const& drawing, std::shared_ptr<Service::Counted> const& counted,
              httplib::Response& response) {
    const auto begun = std::make_shared<bool>(false);
    response.set_chunked_content_provider(
        "text/event-stream",
        [this, drawing, counted, begun](std::size_t, httplib::DataSink& sink) {
          *begun = true;
          const auto send = [&](char const* event, Json const& data) {
            const std::string text = "event: " + std::string(event) + "\ndata: " + text_of(data) + "\n\n";
            if (!sink.write(text.data(), text.size())) {
              drawing->ticket->cancel();
              throw HungUp();
            }
          };
          bool whole = false;
          answered(
              [&] {
                Json begin{{"steps", drawing->ticket->progress().steps}, {"pictures", drawing->job.images()}};
                begin["parameters"] = Service::parameters_of(drawing->job);
                send("begin", begin);
                const auto tell = [&](int done, int all) {
                  send("step", {{"done", done}, {"steps", all}});
                  if (drawing->preview_every == 0 || done % drawing->preview_every != 0 || done == all) return;
                  send("preview", {{"done", done}, {"png", service_.preview(*drawing)}});
                };
                const tstitch::Samples samples = service_.follow(*drawing, gone, tell);
                const Json json = service_.answer(*drawing, service_.files_of(*drawing, samples));
                send("pictures", json);
                service_.metrics().drawn(drawing->job.images(), json["seconds"].get<double>());
                whole = true;
              },
              [&](int status, std::string const& place, std::string const& message) {
                if (status == 499) return;  // nobody is there
                service_.metrics().failed_in_stream();
                const std::string text = "event: error\ndata: " + error_text(status, place, message) + "\n";
                whole = sink.write(text.data(), text.size());
              });
          if (whole) sink.done();
          return whole;
        },
        [this, drawing, begun](bool) {
          if (*begun) return;  // else the client hung up before the head of the response was written
          drawing->ticket->cancel();
          service_.metrics().hung_up();
        });
  }

  Service& service_;
  std::string token_;
};
