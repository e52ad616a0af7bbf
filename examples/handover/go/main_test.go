package main

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

// While it drains every answer ends its connection: also one that the mux gives by itself, or that nobody wrote.
func TestEveryAnswerSaysCloseWhileDraining(t *testing.T) {
	mux := newMux()
	mux.HandleFunc("/empty", func(http.ResponseWriter, *http.Request) {})
	server := httptest.NewServer(sayClose(mux))
	defer server.Close()
	defer draining.Store(false)
	for _, drains := range []bool{false, true} {
		draining.Store(drains)
		for path, status := range map[string]int{"/version": 200, "/empty": 200, "/nowhere": 404} {
			answer, err := server.Client().Get(server.URL + path)
			if err != nil {
				t.Fatal(err)
			}
			answer.Body.Close()
			if answer.StatusCode != status || answer.Close != drains {
				t.Errorf("%s: status %d, closes: %v; it drains: %v", path, answer.StatusCode, answer.Close, drains)
			}
		}
	}
}
