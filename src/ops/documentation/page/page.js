// Shows the gateway's document to whoever looks at it: who authorizes sees what they may call then, and no more.
"use strict";

const authorized = (system) => {
  const known = system.authSelectors.authorized();
  return known ? known.toJS() : {};
};

// The document is asked for with the credentials that its operations are tried with.
const addCredentials = (system, request) => {
  const target = new URL(request.url, window.location.href);
  if (target.origin !== window.location.origin) {
    return;
  }
  const { bearer, apiKey } = authorized(system);
  if ((bearer && bearer.value) || (apiKey && apiKey.value)) {
    target.searchParams.delete("role"); // who has credentials is who they are
    request.url = target.href;
  }
  request.headers = request.headers || {};
  if (bearer && bearer.value) {
    request.headers.Authorization = "Bearer " + bearer.value;
  }
  if (apiKey && apiKey.value) {
    request.headers["X-API-Key"] = apiKey.value;
  }
};

// Stands for a slash until the path is written: nobody's character (Unicode, private use).
const SLASH = "\uE000";

// What stands for the rest of a path has slashes. In any other parameter a slash is sent encoded, and refused.
const KeepSlashes = () => {
  const mark = (original) => (request) => {
    const parameters = { ...request.parameters };
    const described = request.operation && request.operation.get("parameters");
    (described ? described.toJS() : []).forEach((parameter) => {
      const name = "path." + parameter.name;
      if (parameter.in === "path" && parameter["x-slashes"] && typeof parameters[name] === "string") {
        parameters[name] = parameters[name].replaceAll("/", SLASH);
      }
    });
    return original({ ...request, parameters });
  };
  return { statePlugins: { spec: { wrapActions: { executeRequest: mark } } } };
};

const writeSlashes = (request) => {
  request.url = request.url.replaceAll(encodeURIComponent(SLASH), "/");
};

// Another caller, another document.
const FollowCaller = () => {
  const follow = (original, system) => (payload) => {
    const result = original(payload);
    system.specActions.download();
    return result;
  };
  return { statePlugins: { auth: { wrapActions: { authorize: follow, logout: follow } } } };
};

window.addEventListener("load", () => {
  let ui = null;
  ui = SwaggerUIBundle({
    // As in /documentation?role=customer
    url: "documentation/json" + window.location.search,
    dom_id: "#documentation",
    deepLinking: true,
    displayRequestDuration: true,
    filter: true,
    layout: "BaseLayout",
    plugins: [SwaggerUIBundle.plugins.DownloadUrl, FollowCaller, KeepSlashes],
    queryConfigEnabled: false,
    presets: [SwaggerUIBundle.presets.apis],
    requestInterceptor: (request) => {
      if (!request.loadSpec) {
        writeSlashes(request);
      } else if (ui) {
        addCredentials(ui.getSystem(), request);
      }
      return request;
    },
    showExtensions: false,
    validatorUrl: null,
  });
});
