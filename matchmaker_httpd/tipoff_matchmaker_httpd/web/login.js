// The player's login token, for matchmakers that want one: from `?token=` or `#token=` in the page's address, else as
// typed in. It stays in this tab (sessionStorage), and leaves the address bar and the history at once.

const KEY = "tipoff-login-token";
let kept = ""; // where the browser allows no storage, until the page is left

function store(token) {
  kept = token;
  try {
    if (token) sessionStorage.setItem(KEY, token);
    else sessionStorage.removeItem(KEY);
  } catch {
    // said above
  }
}

function takeFromAddress() {
  const url = new URL(location.href);
  const fragment = new URLSearchParams(url.hash.slice(1));
  const token = fragment.get("token") || url.searchParams.get("token");
  if (!token) return;
  store(token.trim());
  url.searchParams.delete("token");
  fragment.delete("token");
  url.hash = fragment.toString();
  history.replaceState(history.state, "", url);
}
takeFromAddress();

/** The token, "" for none. */
export function loginToken() {
  try {
    return sessionStorage.getItem(KEY) || kept;
  } catch {
    return kept;
  }
}

/** "" forgets it. */
export const setLoginToken = (token) => store(token.trim());
