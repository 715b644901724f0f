# What `make demo` shows, with edge-rag on the PATH and EDGE_RAG_HOME set: nothing in here that a user would not type.
set -eu
samples=$(dirname "$0")/lighthouse
step() { printf '\n\033[1m$ edge-rag %s\033[0m\n' "$(printf "'%s' " "$@" | sed "s/'\([A-Za-z0-9_.\/-]*\)'/\1/g")"; edge-rag "$@"; }
export EDGE_RAG_LIBRARY=lighthouse

step models pull smollm2-135m-instruct
step sync "$samples"
step list
step search "Who may open the west door?" -k 2
step ask "What did the repair of the lantern roof cost?"
step ask "Who is the skipper of the Lady Corrie?"
step ask "How many steps lead up to the gallery?"
step ask "What is the capital of Mongolia?"

cat >&2 <<'END'

Next, with your own documents:
    . .venv/bin/activate
    edge-rag add ~/Documents
    edge-rag chat
END
