// An HTTP service whose version changes without one failed request: it serves on sockets that it is given, says when it
// is ready, and finishes what it has begun before it ends. Copy it, and put your own answers into newMux.
package main

import (
	"context"
	"errors"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// version is what /version says; go build -ldflags "-X 'main.version=shop 1.1.0'" sets another.
var version = "shop 1.0.0"

// name of the sockets that it serves, in LISTEN_FDNAMES.
const name = "http"

// patience is how long an idle connection is kept for its next request when the service is to end. Shorter than what
// kills it then: drain_timeout of the agent, or TimeoutStopSec= of systemd.
const patience = 20 * time.Second

var draining atomic.Bool

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	// Before anything else, so that an early signal finds its handler.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	listeners, err := listeners()
	if err != nil {
		return err
	}
	var accepting, open sync.WaitGroup
	server := &http.Server{
		Handler:           sayClose(newMux()),
		ReadHeaderTimeout: 60 * time.Second,
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				open.Add(1)
			case http.StateClosed, http.StateHijacked:
				open.Done()
			}
		},
	}
	for _, listener := range listeners {
		accepting.Add(1)
		go func(listener net.Listener) {
			defer accepting.Done()
			if err := server.Serve(listener); !errors.Is(err, net.ErrClosed) {
				log.Fatal(err)
			}
		}(listener)
	}
	if err := notify("READY=1"); err != nil {
		return err
	}

	<-signals
	draining.Store(true)
	// Whoever listened may be gone. What is under way is finished all the same.
	if err := notify("STOPPING=1"); err != nil {
		log.Print(err)
	}
	// What waits in a socket's queue is for the next process: it is closed here and nowhere else.
	for _, listener := range listeners {
		listener.Close()
	}
	accepting.Wait()
	// Shutdown alone would close idle connections at once, and lose the request that a client is sending on one of them
	// at this very moment. So each is kept until its next request was answered, with "Connection: close".
	closed := make(chan struct{})
	go func() {
		open.Wait()
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(patience):
	}
	// Whoever is answered right now still gets the whole answer.
	return server.Shutdown(context.Background())
}

func newMux() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("/version", func(w http.ResponseWriter, _ *http.Request) { reply(w) })
	mux.HandleFunc("/slow", func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(200 * time.Millisecond)
		reply(w)
	})
	return mux
}

func reply(w http.ResponseWriter) {
	_, _ = w.Write([]byte(version))
}

// sayClose has every answer, also those of the mux itself, end its connection while the service drains.
func sayClose(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		closing := &closingWriter{ResponseWriter: w}
		next.ServeHTTP(closing, r)
		// Whoever wrote nothing is answered when this returns.
		closing.begin()
	})
}

// closingWriter looks whether the service drains when an answer begins, after the work: whoever waited while the signal
// came is told, too. Flush and the like are reached by http.NewResponseController.
type closingWriter struct {
	http.ResponseWriter
	begun bool
}

func (w *closingWriter) begin() {
	if !w.begun && draining.Load() {
		w.Header().Set("Connection", "close")
	}
	w.begun = true
}

func (w *closingWriter) WriteHeader(code int) {
	// 1xx is not the answer yet.
	if code >= 200 {
		w.begin()
	}
	w.ResponseWriter.WriteHeader(code)
}

func (w *closingWriter) Write(body []byte) (int, error) {
	w.begin()
	return w.ResponseWriter.Write(body)
}

func (w *closingWriter) Unwrap() http.ResponseWriter {
	return w.ResponseWriter
}

// listeners gives the sockets that were passed to this process; without any, one of its own.
func listeners() ([]net.Listener, error) {
	count, _ := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		count = 0
	}
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	for _, key := range []string{"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"} {
		os.Unsetenv(key)
	}
	var found []net.Listener
	for index := 0; index < count; index++ {
		syscall.CloseOnExec(3 + index)
		given := name
		if index < len(names) && names[index] != "" {
			given = names[index]
		}
		if given != name {
			log.Printf("there is no use for the socket `%s`", given)
			continue
		}
		file := os.NewFile(uintptr(3+index), given)
		listener, err := net.FileListener(file)
		// FileListener has made a copy.
		file.Close()
		if err != nil {
			return nil, err
		}
		found = append(found, listener)
	}
	if len(found) > 0 {
		return found, nil
	}
	address := os.Getenv("SHOP_LISTEN")
	if address == "" {
		address = "127.0.0.1:8080"
	}
	listener, err := net.Listen("tcp", address)
	return []net.Listener{listener}, err
}

// notify tells whoever started this process, as sd_notify(3) does. Go knows an abstract name by its @, as sd_notify does.
func notify(state string) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	wire, err := net.Dial("unixgram", path)
	if err != nil {
		return err
	}
	defer wire.Close()
	_, err = wire.Write([]byte(state))
	return err
}
