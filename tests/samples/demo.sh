# What `make demo` shows, with edge-rag on the PATH and EDGE_RAG_HOME set: nothing in here that a user would not type.
set -eu
samples=$(dirname "$0")/lighthouse
step() { printf '\n\033[1m$ edge-rag %s\033[0m\n' "$(printf "'%s' " "$@" | sed "s/'\([A-Za-z0-9_.\/-]*\)'/\1/g")"; edge-rag "$@"; }
export EDGE_RAG_LIBRARY=lighthouse

step models pull
step sync "$samples"
step list
step search "Who may open the west door?" -k 2
step ask "What does it cost to change the lock if key 7 is lost?"
step ask "Who is the skipper of the Lady Corrie?"
step ask "How many steps lead up to the gallery?"
step ask "What is the capital of Mongolia?"

# One file, asked from an empty folder while the library and the models are away.
bundle=$EDGE_RAG_HOME/lighthouse.erag
step bundle build lighthouse -o "$bundle" --force
step bundle verify "$bundle"
elsewhere=$(mktemp -d)
mv "$EDGE_RAG_HOME/libraries/lighthouse" "$elsewhere/lighthouse.away"
(cd "$elsewhere" && mkdir empty && cd empty && unset EDGE_RAG_LIBRARY && export EDGE_RAG_HOME="$elsewhere/home" &&
    step bundle run "$bundle" "How many steps lead up to the gallery?")
mv "$elsewhere/lighthouse.away" "$EDGE_RAG_HOME/libraries/lighthouse"
rm -r "$elsewhere"

cat >&2 <<'END'

Next, with your own documents:
    . .venv/bin/activate
    edge-rag add ~/Documents
    edge-rag chat
END
