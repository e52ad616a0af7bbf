//! Reading lists to their last page.

/// Collects every page of a `List` method: `pages!(client.list_nodes, request, nodes)`.
macro_rules! pages {
    ($client:expr, $method:ident, $request:expr, $items:ident) => {{
        let mut client = $client;
        let mut request = std::convert::identity($request);
        request.page_size = 1000;
        let mut items = Vec::new();
        loop {
            let page = client.$method(request.clone()).await?.into_inner();
            items.extend(page.$items);
            if page.next_page_token.is_empty() {
                break items;
            }
            request.page_token = page.next_page_token;
        }
    }};
}

pub(crate) use pages;
