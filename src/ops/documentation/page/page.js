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

// What stands for the rest of a path has slashes; the gateway takes no encoded ones anywhere in a path.
const keepSlashes = (request) => {
  const [path, query] = request.url.split(/\?(.*)/s);
  request.url = path.replace(/%2F/gi, "/") + (query === undefined ? "" : "?" + query);
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
    plugins: [SwaggerUIBundle.plugins.DownloadUrl, FollowCaller],
    queryConfigEnabled: false,
    presets: [SwaggerUIBundle.presets.apis],
    requestInterceptor: (request) => {
      if (!request.loadSpec) {
        keepSlashes(request);
      } else if (ui) {
        addCredentials(ui.getSystem(), request);
      }
      return request;
    },
    showExtensions: false,
    validatorUrl: null,
  });
});
