// The summary above an article: words that arrive one by one, as server-sent events.
//
// EventSource connects again by itself when the connection is lost and sends the id of the last
// event it got, so the server goes on with the next word.

const section = document.getElementById("summary");
const button = section.querySelector("button");
const text = section.querySelector(".text");
const state = section.querySelector(".state");

let source = null;
let words = 0;

function say(message) {
  state.textContent = message;
}

function start() {
  words = 0;
  text.textContent = "";
  section.classList.add("writing");
  text.ariaBusy = "true"; // so that it is read aloud once, when it is complete
  button.textContent = "Stop";
  say("Reading the article …");
  source = new EventSource(section.dataset.url);
  source.addEventListener("token", (event) => {
    text.append(JSON.parse(event.data).text);
    words += 1;
    say(`${words} words so far`);
  });
  source.addEventListener("done", () => {
    end("Summarise again");
    say(`${words} words, from the article’s own sentences`);
  });
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CLOSED) {
      end("Try again");
      say("The summary could not be loaded.");
    } else {
      say("The connection was lost; it goes on in a moment …");
    }
  });
}

function end(next) {
  // Closed here, or the browser would ask for the rest of it again and again.
  source.close();
  source = null;
  section.classList.remove("writing");
  text.ariaBusy = "false";
  button.textContent = next;
}

button.addEventListener("click", () => {
  if (source === null) {
    start();
  } else {
    end("Summarise again");
    say(`Stopped after ${words} words`);
  }
});

section.hidden = false;
